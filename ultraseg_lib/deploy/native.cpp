// The few loops that UltraSeg needs, on one core: a register of channels at a time, sixteen (AVX-512)
// or eight (AVX2). Features are padded to sixteen.
// Features lie as (row, column, channel); `rs` is the distance of two rows, `ps` of two pixels, in
// floats. Borders are zeros around the feature in memory, so that no loop asks where it is.
// Convolutions also read bfloat16 (`half`): two neighbouring channels stand where a float would.
#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define HAS_TILES
#endif

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef float half_vec __attribute__((vector_size(32)));
typedef float quarter_vec __attribute__((vector_size(16)));
#define EACH(i, n) for (int i = 0; i < (n); i++)
#define UNROLL(i, n) _Pragma("GCC unroll 16") for (int i = 0; i < (n); i++)  // keeps sums in registers
#define INLINE static inline __attribute__((always_inline))

INLINE vec load(const float* p) { return *(const vec*)p; }
INLINE void store(float* p, vec v) { *(vec*)p = v; }
INLINE vec all(float x) { return x - (vec){}; }

#ifdef __AVX512F__
INLINE half_vec fold(vec v) {
    return __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
           __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
}
INLINE half_vec halves(vec v, vec w) {  // sums of four: of v in the low half, of w in the high
    vec a = __builtin_shufflevector(v, w, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
            __builtin_shufflevector(v, w, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    return __builtin_shufflevector(a, a, 0, 1, 2, 3, 8, 9, 10, 11) +
           __builtin_shufflevector(a, a, 4, 5, 6, 7, 12, 13, 14, 15);
}
INLINE vec eights(vec a, vec b) {  // the first eight of both
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
}
#else
INLINE half_vec fold(vec v) { return v; }
INLINE vec eights(vec a, vec) { return a; }
INLINE half_vec halves(vec v, vec w) {
    return __builtin_shufflevector(v, w, 0, 1, 2, 3, 8, 9, 10, 11) +
           __builtin_shufflevector(v, w, 4, 5, 6, 7, 12, 13, 14, 15);
}
#endif
INLINE float sum(vec v) {
    half_vec a = fold(v);
    quarter_vec b = __builtin_shufflevector(a, a, 0, 1, 2, 3) +
                    __builtin_shufflevector(a, a, 4, 5, 6, 7);
    return (b[0] + b[1]) + (b[2] + b[3]);
}

INLINE vec exponential(vec x) {  // e^x, relative error below 2e-7
    x = x < -87.f ? all(-87.f) : x > 88.f ? all(88.f) : x;
    vec t = x * 1.44269504f;
    vec n = (t + 12582912.f) - 12582912.f;  // nearest whole number
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = 1.f + r * (1.f + r * (.5f + r * (.166666667f + r * (4.16657962e-2f +
            r * (8.36313624e-3f + r * 1.36968478e-3f)))));
    ivec power = (__builtin_convertvector(n, ivec) + 127) << 23;
    return p * (vec)power;
}
INLINE vec sigmoid(vec x) { return 1.f / (1.f + exponential(-x)); }
INLINE vec gelu(vec x) {  // x (1/2 + c P(c^2)), c = x within +-5; error below 1.2e-6
    static const float p[] = {.14136378f, -.0702966524f, .051521421f, -.0404329485f, .0314262277f,
                              -.0233367382f, .0164976674f, -.0109732112f, .00616540191f,
                              -.00291569823f, .00200189291f, -.00151414283f, .000492955899f};
    vec c = x < -5.f ? all(-5.f) : x > 5.f ? all(5.f) : x;
    vec u = c * c * .08f - 1.f, sum = all(p[12]);
    UNROLL(i, 12) sum = sum * u + p[11 - i];
    return x * (.5f + c * sum);
}

struct View { float* at; long rs, ps; };
struct Conv { const float *weight, *bias; int out, rows, run, step, activation, half, pairs; };

#ifdef __AVX512BF16__
INLINE void add_pair(vec& sum, const float* pair, vec w) {  // two products of bfloat16 a lane
    sum = (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)_mm512_set1_ps(*pair));
}
static void narrow(const float* in, float* out, long n) {  // in place too; n a multiple of 16
    for (long i = 0; i < n; i += 16) {
        __m256bh v = _mm512_cvtneps_pbh((__m512)load(in + i));
        std::memcpy(out + i / 2, &v, 32);
    }
}
#else  // never called: `can_half` says no
INLINE void add_pair(vec&, const float*, vec) {}
static void narrow(const float*, float*, long) {}
#endif

#ifdef HAS_TILES  // the matrix unit (AMX): 16 pixels, 16 outputs and up to 32 inputs at once
static bool can_tile() {  // Linux grants a process its registers on request
    const long request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    static const bool granted = !syscall(SYS_arch_prctl, request, tile_data);
    return granted;
}
static void shape_tiles(int pairs) {  // 0 to 3: sums; 4 to 6: weights; 7: pixels
    struct { uint8_t palette = 1, rest[15] = {}; uint16_t bytes[16] = {}; uint8_t lines[16] = {}; } s;
    EACH(i, 8) s.bytes[i] = i == 7 ? 4 * pairs : 64, s.lines[i] = i > 3 && i < 7 ? pairs : 16;
    _tile_loadconfig(&s);
}
#define EACH_TILE(N, DO) DO(0, 4) if (N > 1) { DO(1, 5) } if (N > 2) { DO(2, 6) } if (N > 3) { DO(3, 4) }
#define TILE_BIAS(n, w) _tile_loadd(n, bias + 16 * n, 0);
#define TILE_ADD(n, w) _tile_loadd(w, weight + 16 * n, 4l * c.out); _tile_dpbf16ps(n, 7, w);
#define TILE_STORE(n, w) _tile_stored(n, acc + n, 64 * N);
template <int N>
INLINE void tile_sums(const Conv& c, const float* weight, const float* bias, const float* src, long rs,
                      long ps, vec* acc) {
    EACH_TILE(N, TILE_BIAS)
    EACH(y, c.rows) for (int j = 0; j < c.run; j += c.pairs, weight += (long)c.pairs * c.out) {
        _tile_loadd(7, src + y * rs + j, 4 * ps);
        EACH_TILE(N, TILE_ADD)
    }
    EACH_TILE(N, TILE_STORE)
}
#else
static bool can_tile() { return false; }
static void shape_tiles(int) {}
template <int N>
INLINE void tile_sums(const Conv&, const float*, const float*, const float*, long, long, vec*) {}
#endif

enum Kind { FLOAT, HALF, TILES };  // what a convolution multiplies with

// N x LANES outputs of P neighbouring pixels: `run` inputs (columns x channels) from each of the rows.
template <int N, int P, Kind K>
INLINE void pixels(const Conv& c, const float* weight, const float* bias, const float* src, long rs,
                   long ps, float* dst, long dps, const float* residual, long rps, vec* s, vec* q) {
    vec acc[P][N];
    if (K == TILES) tile_sums<N>(c, weight, bias, src, rs, ps, acc[0]);
    else {
        UNROLL(p, P) UNROLL(n, N) acc[p][n] = load(bias + LANES * n);
        int y = c.rows;
        do {
            const float* from = src;
            int j = c.run;
            do {
                vec w[N];
                UNROLL(n, N) w[n] = load(weight + LANES * n);
                UNROLL(p, P) UNROLL(n, N) {
                    if (K == HALF) add_pair(acc[p][n], from + p * ps, w[n]);
                    else acc[p][n] += from[p * ps] * w[n];
                }
                weight += c.out, from++;
            } while (--j);
            src += rs;
        } while (--y);
    }
    if (residual) UNROLL(p, P) UNROLL(n, N) acc[p][n] += load(residual + p * rps + LANES * n);
    if (dst) UNROLL(p, P) UNROLL(n, N) store(dst + p * dps + LANES * n, acc[p][n]);
    if (c.activation) EACH(p, P) EACH(n, N) {
        vec v = load(dst + p * dps + LANES * n);
        store(dst + p * dps + LANES * n, c.activation == 1 ? gelu(v) : v > 0.f ? v : (vec){});
    }
    if (s) UNROLL(n, N) {
        vec even = acc[0][n], odd = acc[1 % P][n], squares = even * even, odd_squares = odd * odd;
        UNROLL(p, P / 2 - 1) {
            vec a = acc[2 * p + 2][n], b = acc[2 * p + 3][n];
            even += a, odd += b, squares += a * a, odd_squares += b * b;
        }
        s[n] += P > 1 ? even + odd : even, q[n] += P > 1 ? squares + odd_squares : squares;
    }
}

// `Distance` is in.ps where it is known at compile time: sixteen pointers fit no register file.
template <int N, int P, Kind K, int Distance>
static void rows(const Conv& c, int first, View in, View out, View add, int height, int width,
                 double* stats) {
    const long ps = Distance ? Distance : in.ps;
    EACH(y, height) {
        vec s[N] = {}, q[N] = {};
        const float* src = in.at + y * c.step * in.rs;
        float* dst = out.at ? out.at + y * out.rs + first : nullptr;
        const float* residual = add.at ? add.at + y * add.rs + first : nullptr;
        const float *weight = c.weight + first, *bias = c.bias + first;
        auto at = [&](int x) { return dst ? dst + x * out.ps : nullptr; };
        auto plus = [&](int x) { return residual ? residual + x * add.ps : nullptr; };
        int x = 0;
        for (; x + P <= width; x += P)
            pixels<N, P, K>(c, weight, bias, src + x * ps, in.rs, ps, at(x), out.ps, plus(x), add.ps,
                            stats ? s : nullptr, q);
        if constexpr (P == 6)  // of which rows of 16, 32, 64, … leave two or four
            for (; x + 2 <= width; x += 2)
                pixels<N, 2, K>(c, weight, bias, src + x * ps, in.rs, ps, at(x), out.ps, plus(x), add.ps,
                                stats ? s : nullptr, q);
        for (; x < width; x++)
            pixels<N, 1, K == TILES ? HALF : K>(c, weight, bias, src + x * ps, in.rs, ps, at(x), out.ps,
                                                plus(x), add.ps, stats ? s : nullptr, q);
        if (stats) EACH(n, N) EACH(i, LANES) {
            stats[first + LANES * n + i] += s[n][i];
            stats[c.out + first + LANES * n + i] += q[n][i];
        }
    }
}

using Rows = decltype(&rows<1, 1, FLOAT, 0>);
template <int N, int P, Kind K, int... Distances>
static Rows choose(long ps) {
    Rows found = rows<N, P, K, 0>;
    ((ps == Distances ? void(found = rows<N, P, K, Distances>) : void()), ...);
    return found;
}

static void apply(const Conv& c, View in, View out, View add, int height, int width, double* stats) {
    const bool tiles = c.pairs && width >= 16;
    if (tiles) shape_tiles(c.pairs);
    for (int first = 0, n; first < c.out; first += LANES * n) {
        const int left = c.out - first;
#ifdef __AVX512F__  // 32 registers
        n = left % 48 == 0 ? 3 : tiles && left % 64 == 0 ? 4 : left % 32 == 0 ? 2 : 1;
        Rows run = tiles    ? (n == 4   ? rows<4, 16, TILES, 0>
                               : n == 3 ? rows<3, 16, TILES, 0>
                               : n == 2 ? rows<2, 16, TILES, 0>
                                        : rows<1, 16, TILES, 0>)
                   : c.half ? (n == 3   ? choose<3, 8, HALF, 8, 24, 32, 48>(in.ps)
                               : n == 2 ? choose<2, 8, HALF, 24, 32, 48>(in.ps)
                                        : choose<1, 16, HALF, 3, 4, 6, 8, 16>(in.ps))
                            : (n == 3   ? choose<3, 8, FLOAT, 16, 48, 64, 96>(in.ps)
                               : n == 2 ? choose<2, 8, FLOAT, 48, 64, 96>(in.ps)
                                        : choose<1, 16, FLOAT, 6, 8, 12, 16, 32>(in.ps));
#else  // 16 registers
        n = 2;
        Rows run = choose<2, 6, FLOAT, 6, 8, 12, 16, 32, 48, 64, 96>(in.ps);
#endif
        run(c, first, in, out, add, height, width, stats);
    }
}

extern "C" {

int is_fast() {  // on narrower registers eight lanes are slower than any other backend
#if defined(__AVX2__) && defined(__FMA__)
    return 1;
#else
    return 0;
#endif
}
int can_half() {
#ifdef __AVX512BF16__
    return 1;
#else
    return 0;
#endif
}
// Pairs of inputs that a tile takes at once, a divisor of `run`; 0: without the matrix unit, which
// fewer than four would leave mostly empty.
int tile_pairs(int run) {
    int pairs = can_tile() ? 16 : 0;
    while (pairs && run % pairs) pairs--;
    return pairs < 4 ? 0 : pairs;
}
void narrow_feature(const float* in, float* out, int n) { narrow(in, out, n); }

// Weights (inputs, out) in float32 to pairs of inputs (inputs / 2, out, 2) in bfloat16.
void pair_weights(const float* weight, int inputs, int out, uint16_t* pairs) {
    EACH(i, inputs) EACH(o, out) {
        uint32_t bits;
        std::memcpy(&bits, weight++, 4);
        pairs[(i / 2 * out + o) * 2 + i % 2] = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    }
}

// out = activation(convolution(in) + add); `stats`: sum and sum of squares of each channel.
void convolve(const Conv* c, const View* in, const View* out, const View* add, int height, int width,
              double* stats) {
    if (stats) EACH(i, 2 * c->out) stats[i] = 0;
    apply(*c, *in, *out, *add, height, width, stats);
}

// GroupNorm from the sums: scale and shift of each of `n` channels; group[i] is i's group.
void normalise(const double* stats, int n, const int32_t* group, double count, double eps,
               const float* weight, const float* bias, float* scale, float* shift) {
    EACH(i, n) {
        double members = 0, s = 0, q = 0;
        EACH(k, n) if (group[k] == group[i]) members++, s += stats[k], q += stats[n + k];
        double mean = s / (members * count), variance = q / (members * count) - mean * mean;
        scale[i] = weight[i] / std::sqrt(variance + eps);
        shift[i] = bias[i] - mean * scale[i];
    }
}

// out = base + the sum of coefficient[i] * table[i], rows of `n` floats: weights for this image.
void combine(const float* table, const float* coefficient, int rows, int n, const float* base,
             float* out) {
    EACH(j, n) out[j] = base[j];
    EACH(i, rows) EACH(j, n) out[j] += coefficient[i] * table[(long)i * n + j];
}
void scale_inputs(const float* weight, const float* scale, int taps, int in, int out, float* scaled) {
    EACH(t, taps) EACH(i, in) EACH(o, out) *scaled++ = *weight++ * scale[i];
}

// Eq. 2, the EDB: branches of dilation 1, 2, 3, then the 1x1 and the residual, row by row.
// `weight` [dilation][tap][channel of the group][group]; input channels ordered (of the group, group).
void dilated(const float* weight, const Conv* mix, const View* in, const View* out, int height,
             int width, float* line, double* stats) {
    constexpr int third = 16, ps = 3 * third;  // UltraSeg's 48 channels
    EACH(i, 2 * mix->out) stats[i] = 0;
    EACH(y, height) {
        EACH(d, 3) for (int g = 0; g < third; g += LANES)
            for (int x = 0; x < width; x += 8) {
                vec acc[8] = {};
                EACH(t, 9) {
                    const float* src = in->at + (y + (t / 3 - 1) * (d + 1)) * in->rs +
                                       (x + (t % 3 - 1) * (d + 1)) * ps + g;
                    EACH(k, 3) {
                        vec w = load(weight + ((d * 9 + t) * 3 + k) * third + g);
                        EACH(p, 8) acc[p] += w * load(src + p * ps + k * third);
                    }
                }
                EACH(p, 8) store(line + (x + p) * 3 * third + d * third + g, acc[p]);
            }
        View to = {out->at + y * out->rs, 0, out->ps}, from = {in->at + y * in->rs, 0, in->ps};
        if (mix->half) narrow(line, line, 3l * third * width);
        apply(*mix, {line, 0, 3 * third / (mix->half ? 2 : 1)}, to, from, 1, width, stats);
    }
}

// GSA up to its second norm: norm, map, norm, over the channels of each pixel.
void attend(const View* in, const View* out, int channels, int height, int width, const float* gain,
            const float* offset) {
    const int n = channels / LANES;
    vec v[512 / LANES];
    EACH(y, height) EACH(x, width) {
        const float* src = in->at + y * in->rs + x * in->ps;
        EACH(i, n) v[i] = load(src + LANES * i);
        EACH(twice, 2) {
            vec s = {}, q = {};
            EACH(i, n) s += v[i];
            float mean = sum(s) / channels;
            EACH(i, n) v[i] -= mean, q += v[i] * v[i];
            float scale = 1 / std::sqrt(sum(q) / channels + 1e-6f);
            if (twice) EACH(i, n) v[i] *= scale;
            else EACH(i, n) v[i] = v[i] * scale * load(gain + LANES * i) + load(offset + LANES * i);
        }
        gain += channels, offset += channels;
        EACH(i, n) store(out->at + y * out->rs + x * out->ps + LANES * i, v[i]);
    }
}

// gelu(3x3 depthwise + constant): `weight` [tap][channel], `constant` as the feature.
void depthwise(const View* in, const View* out, int channels, int height, int width,
               const float* weight, const float* constant) {
    EACH(y, height) EACH(x, width) for (int c = 0; c < channels; c += LANES, constant += LANES) {
        vec acc = load(constant);
        EACH(t, 9) acc += load(weight + t * channels + c) *
                          load(in->at + (y + t / 3 - 1) * in->rs + (x + t % 3 - 1) * in->ps + c);
        store(out->at + y * out->rs + x * out->ps + c, gelu(acc));
    }
}

void pool(const View* in, const View* out, int channels, int height, int width, const float* scale,
          const float* shift) {
    EACH(y, height) EACH(x, width) for (int c = 0; c < channels; c += LANES) {
        vec best = all(-3e38f);
        EACH(k, 4) {
            vec v = load(in->at + (2 * y + k / 2) * in->rs + (2 * x + k % 2) * in->ps + c);
            v = v * load(scale + c) + load(shift + c);
            best = v > best ? v : best;
        }
        store(out->at + y * out->rs + x * out->ps + c, gelu(best));
    }
}

struct Corner { int32_t low, high; float share; };  // bilinear, corners on corners, along one side

// One row of `n` floats between two rows of a feature without a border.
INLINE void mix_rows(const View& in, const Corner& v, long n, float* line) {
    const float *a = in.at + v.low * in.rs, *b = in.at + v.high * in.rs;
    for (long i = 0; i < n; i += LANES) store(line + i, load(a + i) + (load(b + i) - load(a + i)) * v.share);
}
INLINE vec mixed(const float* line, long ps, const Corner& h) {
    vec low = load(line + h.low * ps);
    return low + (load(line + h.high * ps) - low) * h.share;
}
void resize(const View* in, const View* out, int channels, int height, int width, const Corner* v,
            const Corner* h, float* line) {
    EACH(y, height) {
        mix_rows(*in, v[y], in->rs, line);
        EACH(x, width) for (int c = 0; c < channels; c += LANES)
            store(out->at + y * out->rs + x * out->ps + c, mixed(line + c, in->ps, h[x]));
    }
}

struct Gates { float weight[2][512], bias[2], own[2], other[2]; };  // region, boundary; 0 for none

// Norm, resize, GELU, prediction gate: out = feature * gain; other = the gain of the skip (Eq. 1).
void gate(const View* in, const View* out, float* other, int channels, int height, int width,
          const float* scale, const float* shift, const Corner* v, const Corner* h, const Gates* g,
          float* line) {
    float *region = line, *edge = line + width, *mix = line + 2 * width;
    EACH(y, height) {
        mix_rows(*in, v[y], in->rs, mix);
        float* row = out->at + y * out->rs;
        EACH(x, width) {
            vec r = {}, e = {};
            for (int c = 0; c < channels; c += LANES) {
                vec f = gelu(mixed(mix + c, in->ps, h[x]) * load(scale + c) + load(shift + c));
                store(row + x * out->ps + c, f);
                r += f * load(g->weight[0] + c), e += f * load(g->weight[1] + c);
            }
            half_vec both = halves(r, e);  // four sums each
            region[x] = (both[0] + both[1]) + (both[2] + both[3]);
            edge[x] = (both[4] + both[5]) + (both[6] + both[7]);
        }
        for (int x = 0; x < width; x += LANES) {
            vec r = sigmoid(load(region + x) + g->bias[0]), e = sigmoid(load(edge + x) + g->bias[1]);
            store(region + x, 1.f + g->own[0] * r + g->own[1] * e);
            store(other + (long)y * width + x, 1.f + g->other[0] * r + g->other[1] * e);
        }
        EACH(x, width) for (int c = 0; c < channels; c += LANES) {
            float* p = row + x * out->ps + c;
            store(p, load(p) * region[x]);
        }
    }
}

void fuse(const View* own, const View* skip, const float* other, const View* out, int channels,
          int height, int width) {
    EACH(y, height) EACH(x, width) for (int c = 0; c < channels; c += LANES)
        store(out->at + y * out->rs + x * out->ps + c,
              load(own->at + y * own->rs + x * own->ps + c) +
                  load(skip->at + y * skip->rs + x * skip->ps + c) * other[(long)y * width + x]);
}

// AGF: the mean of two features by a softmax over two logits. SSA: Eq. 4.
void blend(const View* first, const View* second, const View* logits, const View* out, int channels,
           int height, int width) {
    EACH(y, height) EACH(x, width) {
        const float* l = logits->at + y * logits->rs + x * logits->ps;
        float share = 1 / (1 + std::exp(l[1] - l[0]));
        for (int c = 0; c < channels; c += LANES)
            store(out->at + y * out->rs + x * out->ps + c,
                  load(first->at + y * first->rs + x * first->ps + c) * share +
                      load(second->at + y * second->rs + x * second->ps + c) * (1 - share));
    }
}
void attend_space(const View* in, int channels, int height, int width, float alpha) {
    EACH(y, height) EACH(x, width) {
        float* p = in->at + y * in->rs + x * in->ps;
        vec s = {};
        for (int c = 0; c < channels; c += LANES) s += load(p + c);
        float gain = 1 - alpha + alpha / (1 + std::exp(-sum(s) / channels));
        for (int c = 0; c < channels; c += LANES) store(p + c, load(p + c) * gain);
    }
}

// The last stage: eight channels (of sixteen) resized, GELU, three heads, the gates, one logit.
void finish(const View* in, const View* skip, int height, int width, const float* scale,
            const float* shift, const Corner* v, const Corner* h, const Conv* heads,
            const Conv* skip_head, const Gates* g, float bias, float* line, float* gates, float* out) {
    float* mix = line + 8 * width;
    EACH(y, height) {
        mix_rows(*in, v[y], in->rs, mix);
        for (int x = 0; x < width; x += LANES / 8) {
            vec both = eights(mixed(mix, 8, h[x]), mixed(mix, 8, h[x + LANES / 8 - 1]));
            store(line + 8 * x, gelu(both * load(scale) + load(shift)));
        }
        View sums = {gates, 0, 16};
        if (heads->half) narrow(line, line, 8l * width);
        apply(*heads, {line, 0, heads->half ? 4 : 8}, sums, {}, 1, width, nullptr);
        apply(*skip_head, {skip->at + y * skip->rs, 0, skip->ps}, sums, sums, 1, width, nullptr);
        for (int x = 0; x < width; x += LANES) {
            vec part[4];
            EACH(k, 4) EACH(i, LANES) part[k][i] = gates[16 * (x + i) + k];
            vec region = sigmoid(part[0]), edge = sigmoid(part[1]);
            store(out + (long)y * width + x,
                  (1.f + g->own[0] * region + g->own[1] * edge) * part[2] +
                      (1.f + g->other[0] * region + g->other[1] * edge) * part[3] + bias);
        }
    }
}

// Resize one channel, rows then columns.
void resize_plane(const float* in, int in_width, float* out, int height, int width, const Corner* v,
                  const Corner* h, float* line) {
    EACH(y, height) {
        const float *a = in + (long)v[y].low * in_width, *b = in + (long)v[y].high * in_width;
        EACH(x, in_width) line[x] = a[x] + (b[x] - a[x]) * v[y].share;
        EACH(x, width) *out++ = line[h[x].low] + (line[h[x].high] - line[h[x].low]) * h[x].share;
    }
}

void take_image(const float* image, long channel, long row, long column, int size, const View* out) {
    EACH(y, size) {
        float* to = out->at + y * out->rs;
        if (channel == 1 && column == 3) std::memcpy(to, image + y * row, 12l * size);
        else if (column == 1) {
            const float *r = image + y * row, *g = r + channel, *b = g + channel;
            EACH(x, size) to[3 * x] = r[x], to[3 * x + 1] = g[x], to[3 * x + 2] = b[x];
        } else EACH(c, 3) EACH(x, size) to[3 * x + c] = image[c * channel + y * row + x * column];
    }
}
}
