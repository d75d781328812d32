"""Figures about the networks themselves (Table 1, Fig. 1, sections 3.1-3.3), drawn from live models.

Shapes, counts and fields are read off the models by hooks and gradients, never typed. Functions
named `draw_`, `plot_` and `show_` return a matplotlib Figure and show nothing by themselves.
"""

import copy
from collections.abc import Callable, Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Patch, Rectangle
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from ultraseg_lib.models import MODELS, create_model
from ultraseg_lib.models.complexity import COUNTED, evaluating, receptive_field
from ultraseg_lib.models.layers import (
    ChannelNorm,
    GatedDecoderStage,
    GroupShuffleAttention,
    LargeKernelBlock,
    PredictionGate,
)
from ultraseg_lib.models.ultraseg import EnhancedDilatedBlock, UltraSeg

from .figures import PALETTE, TRUTH, _outline

Shape = tuple[int, ...]
MISSED = ("bare parameters", "channel norms", "GroupNorm")
BLOCK_NAMES = {
    nn.Conv2d: "3×3 conv",
    EnhancedDilatedBlock: "EDB",
    GroupShuffleAttention: "GSA",
    LargeKernelBlock: "7×7 block",
}


# --- counting ------------------------------------------------------------------------------------


def missed_parameters(names: Iterable[str]) -> pd.DataFrame:
    """Return what the paper's count misses in each named model: a row a model, head of one logit.

    Columns: model, title, total, counted (seen by `thop`), then a column for each of `MISSED`.
    """
    rows = []
    for name in names:
        with torch.random.fork_rng(devices=[]):  # counting draws none of the caller's
            model = create_model(name)
        sums = dict.fromkeys(("counted", *MISSED), 0)
        for module in model.modules():
            sums[_kind(module)] += sum(own.numel() for own in module.parameters(recurse=False))
        title = MODELS[name].title
        rows.append({"model": name, "title": title, "total": sum(sums.values()), **sums})
    return pd.DataFrame(rows)


def _kind(module: nn.Module) -> str:
    if isinstance(module, COUNTED):
        return "counted"
    kinds = {ChannelNorm: "channel norms", nn.GroupNorm: "GroupNorm"}
    return kinds.get(type(module), "bare parameters")


def plot_missed_parameters(table: pd.DataFrame) -> Figure:
    """Show which share of each model's parameters the paper's count misses, by kind."""
    figure, axes = plt.subplots(figsize=(13, 1.8 + 0.6 * len(table)))
    left = np.zeros(len(table))
    for kind, colour in zip(MISSED, (PALETTE[1], PALETTE[0], PALETTE[2]), strict=True):
        share = 100 * (table[kind] / table["total"]).to_numpy()
        axes.barh(table["title"], share, left=left, color=colour, label=kind)
        left += share
    for line, share in enumerate(left):
        axes.text(share + 0.4, line, f"{share:.1f}%" if share else "nothing", va="center")
    axes.invert_yaxis()
    axes.set(xlabel="missed by the paper's count (% of all parameters)", xlim=(0, 1.2 * left.max()))
    axes.legend(loc="lower right")
    return figure


# --- the drawing of Fig. 1 -----------------------------------------------------------------------


def record_outputs(
    model: nn.Module, image: Tensor, *kinds: type[nn.Module]
) -> dict[str, Tensor | tuple[Tensor | None, ...]]:
    """Return what every module of some `kinds` (all, if none) puts out for image (N, 3, H, W), by name.

    The model itself has the name "". Eval mode and no gradient; the model's mode is kept.
    """
    kinds = kinds or (nn.Module,)
    outputs: dict[str, Tensor | tuple[Tensor | None, ...]] = {}

    def watch(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: outputs.update({name: output})

    named = [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]
    handles = [module.register_forward_hook(watch(name)) for name, module in named]
    with evaluating(model, *handles), torch.no_grad():
        model(image)
    return outputs


def capture_shapes(model: nn.Module, size: int) -> dict[str, list[Shape]]:
    """Return each module's output shapes for one image (1, 3, size, size), batch left out.

    Keys are module names, "" for the model itself; a module with several outputs has several
    shapes.
    """
    shapes = {}
    for name, output in record_outputs(model, torch.zeros(1, 3, size, size)).items():
        parts = output if isinstance(output, tuple) else (output,)
        shapes[name] = [tuple(part.shape[1:]) for part in parts if isinstance(part, Tensor)]
    return shapes


def times(shape: Shape) -> str:
    """Return a shape as text: (48, 32, 32) becomes "48×32×32"."""
    return "×".join(map(str, shape))


BOX = (4.7, 1.12)  # width and height of a box of the drawing
ENCODER_X, FUSION_X, DECODER_X, HEADS_X = 0.0, 6.2, 12.2, 18.2
ROW = 1.95  # height of one level of the drawing
FILLS = {
    "encoder": PALETTE[0],
    "decoder": PALETTE[2],
    "fusion": PALETTE[7],
    "added in 130K": PALETTE[1],
    "predictions": PALETTE[4],
}


def draw_ultraseg(model: UltraSeg, size: int = 256) -> Figure:
    """Draw an UltraSeg (Fig. 1) with the shape that every part puts out for a size × size image."""
    shapes = capture_shapes(model, size)
    figure, axes = plt.subplots(figsize=(19, 13.5))
    _draw_ends(axes, shapes, size)
    for level in (1, 2, 3, 4):
        _draw_level(axes, model, shapes, level)
    _draw_bottom(axes, model, shapes)
    fills = {k: v for k, v in FILLS.items() if model.agf is not None or k != "added in 130K"}
    handles = [Patch(fc=_tint(fill), ec=fill, lw=2, label=name) for name, fill in fills.items()]
    handles.append(Line2D([], [], color="0.25", lw=2.5, ls="--", label="skip"))
    axes.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.04), ncol=6, fontsize=19
    )
    axes.set(xlim=(-3.7, HEADS_X + 4.8), ylim=(-5.85 * ROW, 0.8))
    axes.set_axis_off()
    return figure


def _tint(colour: str | tuple[float, ...]) -> tuple[float, ...]:
    return tuple(1 - 0.3 * (1 - channel) for channel in to_rgb(colour))


def _box(axes: Axes, x: float, y: float, part: str, name: str, shape: str) -> None:
    """Draw one box at (x, y): what it is, in bold, above the shape of what it puts out."""
    width, height = BOX
    corner, fill = (x - width / 2, y - height / 2), FILLS[part]
    style = {"boxstyle": "round,pad=0,rounding_size=0.15", "fc": _tint(fill), "ec": fill, "lw": 2}
    axes.add_patch(FancyBboxPatch(corner, width, height, **style, zorder=3))
    lift = 0.22 * height
    text = {"ha": "center", "va": "center", "zorder": 4, "fontsize": 19}
    axes.text(x, y + lift, name, weight="bold", **text)
    axes.text(x, y - lift, shape, **text)


def _arrow(axes: Axes, *points: tuple[float, float], colour: object = "0.25", **style: str) -> None:
    """Draw a line through points (x, y) in data units, with a head at the last one."""
    *way, before, end = points
    axes.plot(*zip(*way, before, strict=True), color=colour, lw=2.5, zorder=2, ls=style.get("ls"))
    look = {"arrowstyle": "-|>", "lw": 2.5, "color": colour, "mutation_scale": 22, **style}
    axes.annotate("", end, before, arrowprops={"shrinkA": 0, "shrinkB": 0, **look}, zorder=2)


def _draw_ends(axes: Axes, shapes: dict[str, list[Shape]], size: int) -> None:
    """Draw the full-size level: the image that comes in and the logits that go out."""
    half, rise = BOX[0] / 2, BOX[1] / 2
    _box(axes, ENCODER_X, 0, "encoder", "image", times((3, size, size)))
    _box(axes, FUSION_X, 0, "decoder", "head: 1×1 conv", times(shapes["head"][0]))
    _box(axes, DECODER_X, 0, "predictions", "mask logits", times(shapes[""][0]))
    _arrow(axes, (ENCODER_X, -rise), (ENCODER_X, rise - ROW))
    _arrow(axes, (FUSION_X + half, 0), (DECODER_X - half, 0))
    axes.text((FUSION_X + DECODER_X) / 2, 0.12, "×2", ha="center", fontsize=19)


def _draw_level(axes: Axes, model: UltraSeg, shapes: dict[str, list[Shape]], level: int) -> None:
    """Draw encoder stage, skip, fusion, decoder stage and heads of one level, 1 at half size."""
    y, half, rise = -ROW * level, BOX[0] / 2, BOX[1] / 2
    encoder, decoder = model.get_submodule(f"encoder{level}"), f"decoder{level}"
    stage = model.get_submodule(decoder)
    gated, *maps = shapes[f"{decoder}.gate"]
    heads = "region + boundary" if len(maps) == 2 else "region"
    up = ", ×2" if stage.upsample else ""
    _box(axes, ENCODER_X, y, "encoder", _blocks(encoder), times(shapes[f"encoder{level}"][0]))
    _box(axes, FUSION_X, y, "fusion", "fusion (Eq. 1)", times(shapes[decoder][0]))
    _box(axes, DECODER_X, y, "decoder", f"{_blocks(stage)}{up}, gate", times(gated))
    _box(axes, HEADS_X, y, "predictions", heads, f"{len(maps)} × ({times(maps[0])})")
    _arrow(axes, (ENCODER_X + half, y), (FUSION_X - half, y), ls="--")
    _arrow(axes, (DECODER_X - half, y), (FUSION_X + half, y))
    _arrow(axes, (DECODER_X + half, y), (HEADS_X - half, y), arrowstyle="<|-|>")
    axes.text(HEADS_X + half + 0.3, y, f"level {level}", va="center", fontsize=19, color="0.3")
    over = y + rise + 0.2
    ends = (FUSION_X + 1.2, y + rise)
    _arrow(axes, (HEADS_X, y + rise), (HEADS_X, over), (ends[0], over), ends,
           colour=FILLS["predictions"])  # fmt: skip
    if level < 4:
        _arrow(axes, (ENCODER_X, y - rise), (ENCODER_X, y - ROW + rise))
    out, turn = FUSION_X - 1.2, y + rise + 0.5
    if level == 1:
        _arrow(axes, (out, y + rise), (out, y + ROW - rise))
    else:
        corner = (DECODER_X, turn)
        _arrow(axes, (out, y + rise), (out, turn), corner, (DECODER_X, y + ROW - rise))


def _blocks(stage: nn.Module) -> str:
    """Name the blocks of an encoder or decoder stage, as "3×3 conv, EDB, EDB"."""
    if isinstance(stage, GatedDecoderStage) or not hasattr(stage, "context"):
        return BLOCK_NAMES[type(stage.block)]
    return ", ".join(BLOCK_NAMES[type(block)] for block in (stage.conv, *stage.context))


def _draw_bottom(axes: Axes, model: UltraSeg, shapes: dict[str, list[Shape]]) -> None:
    """Draw what lies between encoder and decoder: AGF, bottleneck, SSA (section 3.3), if any."""
    y, half, rise = -ROW * 5, BOX[0] / 2, BOX[1] / 2
    parts = [
        (ENCODER_X, "added in 130K", "AGF", "agf"),
        (FUSION_X, "encoder", "bottleneck 3×3 conv", "bottleneck"),
        (DECODER_X, "added in 130K", "SSA (Eq. 4)", "ssa"),
    ]
    way = [(ENCODER_X, -ROW * 4 - rise)]  # from the last encoder stage
    for x, fill, name, module in parts:
        if type(getattr(model, module)) in (type(None), nn.Identity):
            way.append((x, y))
            continue
        _box(axes, x, y, fill, name, times(shapes[module][0]))
        _arrow(axes, *way, (x, y + rise) if x == ENCODER_X else (x - half, y))
        way = [(x + half, y) if x != DECODER_X else (x, y + rise)]
    _arrow(axes, *way, (DECODER_X, -ROW * 4 - rise))
    if model.agf is not None:
        left = ENCODER_X - half
        _arrow(axes, (left, y + 2 * ROW), (left - 0.7, y + 2 * ROW), (left - 0.7, y), (left, y),
               ls="--")  # fmt: skip


# --- receptive fields ----------------------------------------------------------------------------


def show_influence(maps: dict[str, dict[str, Tensor]], title: str) -> Figure:
    """Show influence maps on one logarithmic scale, each with its effective field as a square.

    `maps`: row title to {column title: map (S, S) of `complexity.influence_map`}; a panel that is
    not there is left out.
    """
    columns = list(dict.fromkeys(title for row in maps.values() for title in row))
    shape = (len(maps), len(columns))
    figure, grid = plt.subplots(
        *shape, figsize=(4.3 * shape[1] + 1.5, 4.9 * shape[0] + 0.4), squeeze=False
    )
    for axes in grid.flat:
        axes.set_axis_off()
    for line, (label, row) in zip(grid, maps.items(), strict=True):
        for name, influence in row.items():
            axes = line[columns.index(name)]
            shown = _influence_panel(axes, influence)
            axes.set_title(f"{name}\n{label}: {receptive_field(influence)} px")
    bar = figure.colorbar(shown, ax=grid, shrink=0.8, extend="both")
    bar.set_label("influence of a pixel on the centre (share)")
    figure.suptitle(title)
    return figure


def _influence_panel(axes: Axes, influence: Tensor) -> AxesImage:
    size, side = len(influence), receptive_field(influence)
    blocks = avg_pool2d(influence[None], 4)[
        0
    ].numpy()  # the mean of 4 × 4 pixels: less noise, same scale
    shown = axes.imshow(
        blocks, cmap="cividis", norm=LogNorm(1e-6, 1e-3, clip=True), extent=(0, size, size, 0)
    )
    corner = size // 2 + 0.5 - side / 2  # the middle of the centre pixel, less half a side
    for colour, width in (("white", 6), (PALETTE[1], 3)):
        place = (corner, corner)
        axes.add_patch(Rectangle(place, side, side, fill=False, ec=colour, lw=width))
    return shown


def without_groupnorm(model: nn.Module) -> nn.Module:
    """Replace every GroupNorm of the model by nothing, in place, and return the model.

    A GroupNorm divides by a statistic of the whole image, so with it every pixel reaches every
    other.
    """
    for name, child in list(model.named_children()):
        if isinstance(child, nn.GroupNorm):
            setattr(model, name, nn.Identity())
        else:
            without_groupnorm(child)
    return model


def field_of(block: nn.Module, channels: int, size: int) -> np.ndarray:
    """Return the pixels that the centre of `block`'s output depends on: bool (size, size).

    The block maps (1, channels, size, size) to (1, C, h, w); it is measured on a copy
    whose weights are positive: a zero gradient then means "no path" and never "two paths that
    cancel".
    """
    noise = torch.Generator().manual_seed(0)
    measured = copy.deepcopy(block).double().eval()
    for parameter in measured.parameters():
        nn.init.uniform_(parameter, 0.1, 1.1, generator=noise)
    image = torch.rand(1, channels, size, size, generator=noise, dtype=torch.float64)
    output = measured(image.requires_grad_())
    centre = output[0, :, output.shape[2] // 2, output.shape[3] // 2].sum()
    (gradient,) = torch.autograd.grad(centre, image)
    return (gradient[0].abs().sum(dim=0) > 0).numpy()


def side_of(field: np.ndarray) -> int:
    """Return the side in pixels of the smallest square around the true pixels of `field` (S, S)."""
    lines = np.flatnonzero(field.any(axis=1))
    columns = np.flatnonzero(field.any(axis=0))
    return int(max(np.ptp(lines), np.ptp(columns))) + 1


def show_fields(fields: dict[str, np.ndarray], claims: dict[str, int]) -> Figure:
    """Show measured fields, bool (S, S) each, with squares whose side a formula claims, in pixels."""
    figure, grid = plt.subplots(1, len(fields), figsize=(6.2 * len(fields), 6.9), squeeze=False)
    for axes, (title, field) in zip(grid.flat, fields.items(), strict=True):
        axes.imshow(np.where(field, 0.35, 1.0), cmap="gray", vmin=0, vmax=1)
        axes.set_title(f"{title}: {side_of(field)} × {side_of(field)}")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(True)
        for (label, side), colour, style in zip(
            claims.items(), (PALETTE[3], PALETTE[0]), ("-", "--"), strict=False
        ):
            corner = len(field) // 2 - side / 2
            axes.add_patch(Rectangle((corner, corner), side, side, fill=False, ec=colour, lw=4,
                                     ls=style, label=label))  # fmt: skip
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncol=len(claims))
    return figure


# --- EDB -----------------------------------------------------------------------------------------


def channel_connections(edb: EnhancedDilatedBlock) -> np.ndarray:
    """Return which input channel each branch output sees: bool (C, C), outputs by inputs.

    Measured by gradients through the branches, before the 1×1 convolution mixes them. Outputs are
    in the order of concatenation: dilation 1, then 2, then 3.
    """
    channels = edb.mix.in_channels
    feature = torch.ones(1, channels, 7, 7, requires_grad=True)
    inputs = feature.chunk(3, dim=1) if edb.split else [feature] * 3
    views = torch.cat([branch(part) for branch, part in zip(edb.branches, inputs, strict=True)], 1)
    rows = [torch.autograd.grad(view[3, 3], feature, retain_graph=True)[0] for view in views[0]]
    return (torch.cat(rows).abs().sum(dim=(2, 3)) > 0).numpy()


def show_connections(connections: dict[str, np.ndarray]) -> Figure:
    """Show `channel_connections` of several readings, a panel each, a colour for each dilation."""
    figure, grid = plt.subplots(
        1, len(connections), figsize=(7.4 * len(connections), 7.6), squeeze=False, sharey=True
    )
    colours = (PALETTE[0], PALETTE[1], PALETTE[2])
    for axes, (title, seen) in zip(grid.flat, connections.items(), strict=True):
        third = len(seen) // 3
        for branch, colour in enumerate(colours):
            rows, columns = np.nonzero(seen[branch * third : (branch + 1) * third])
            axes.scatter(columns, rows + branch * third, 28, marker="s", color=colour,
                         label=f"dilation {branch + 1}")  # fmt: skip
        axes.set(xlim=(-1, len(seen)), ylim=(len(seen), -1), xlabel="input channel")
        axes.set(title=title, xticks=range(0, len(seen) + 1, third), aspect="equal")
        axes.grid(color="0.88")
    grid[0, 0].set(ylabel="branch output", yticks=range(0, len(seen) + 1, third))
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncol=3, markerscale=2.5
    )
    return figure


# --- gates and maps ------------------------------------------------------------------------------


def gates_of(model: UltraSeg, image: Tensor) -> dict[str, Tensor]:
    """Return every gate of an UltraSeg as probabilities (N, 1, h, w), at the size it works at.

    Keys: "mask" for the output, "region, level 4" to "region, level 1", "boundary, level 3" to 1.
    """
    outputs = record_outputs(model, image, PredictionGate, UltraSeg)  # not all: memory
    gates = {"mask": torch.sigmoid(outputs[""].logits)}
    for level in "4321":
        _, *logits = outputs[f"decoder{level}.gate"]
        for kind, found in zip(("region", "boundary"), logits, strict=True):
            if found is not None:
                gates[f"{kind}, level {level}"] = torch.sigmoid(found)
    return gates


def show_gates(image: np.ndarray, mask: np.ndarray, gates: dict[str, Tensor], title: str) -> Figure:
    """Show the region gates (top) and boundary gates (bottom), deepest first, each at its own size.

    `image` (S, S, 3) uint8, `mask` (S, S) uint8, `gates` of `gates_of` for this one image.
    """
    figure, grid = plt.subplots(2, 5, figsize=(19, 8.6))
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    grid[0, 0].imshow(image)
    _outline(grid[0, 0], mask > 0, TRUTH)
    grid[0, 0].set_title("image, true outline")
    shown = grid[1, 0].imshow(gates["mask"][0, 0].numpy(), cmap="cividis", vmin=0, vmax=1)
    grid[1, 0].set_title("predicted mask")
    for line, kind in zip(grid, ("region", "boundary"), strict=True):
        for axes, level in zip(line[1:], (4, 3, 2, 1), strict=True):
            name = f"{kind}, level {level}"
            gate = gates.get(name)
            if gate is None:
                axes.text(0.5, 0.5, f"no {kind}\nhead here", ha="center", va="center")
                continue
            axes.imshow(gate[0, 0].numpy(), cmap="cividis", vmin=0, vmax=1)
            axes.set_title(f"{name}\n{times(tuple(gate.shape[2:]))}")
    figure.colorbar(shown, ax=grid, label="gate (probability)", shrink=0.8)
    figure.suptitle(title)
    return figure
