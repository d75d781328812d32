"""Intervals and tests against scipy, simulated coverage, and examples worked by hand."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from ultraseg_lib.statistics import bootstrap_interval, holm, paired_test


def scores(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).beta(4, 1, shape)


def test_interval_over_images_agrees_with_scipy():
    values = scores(300)
    ours = bootstrap_interval(values, resamples=9999)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", rng=1).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=2e-3)


def test_interval_over_images_covers_the_true_mean_as_often_as_it_says():
    intervals = [bootstrap_interval(scores(100, seed=i), resamples=500) for i in range(300)]
    covered = np.mean([low <= 0.8 <= high for _, low, high in intervals])
    assert 0.91 <= covered <= 0.98


def test_one_seed_is_the_same_as_no_seed_axis():
    values = scores(50)
    assert bootstrap_interval(values) == bootstrap_interval(values[None])


def test_repeating_a_run_does_not_make_the_interval_narrower():
    """Three equal runs are still one set of test images."""
    values = scores(100)
    once, thrice = (bootstrap_interval(v, resamples=9999) for v in (values, [values] * 3))
    assert thrice.high - thrice.low == pytest.approx(once.high - once.low, rel=0.05)


def test_seeds_that_differ_make_the_interval_wider():
    values = scores(100)
    runs = values + np.array([[-0.1], [0.0], [0.1]])
    once, spread = bootstrap_interval(values), bootstrap_interval(runs)
    assert spread.mean == pytest.approx(once.mean)
    assert spread.high - spread.low > 2 * (once.high - once.low)


@pytest.mark.parametrize("levels", [(0.4, 0.6), (0.71, 0.74, 0.7), np.linspace(0.6, 0.8, 12)])
def test_where_seeds_are_all_that_matters_it_is_the_t_interval(levels):
    runs = np.repeat(np.array(levels)[:, None], 5, axis=1)
    theirs = stats.ttest_1samp(levels, 0).confidence_interval()
    assert bootstrap_interval(runs)[1:] == pytest.approx((theirs.low, theirs.high))


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("luck", [0.005, 0.03, 0.1])  # of a training, beside 0.009 by the images
def test_models_that_are_alike_are_told_apart_as_rarely_as_it_says(seeds, luck):
    rng, outside = np.random.default_rng(0), 0
    for _ in range(300):
        sides = rng.normal(0, luck, (2, seeds, 1)) + rng.normal(0, 0.09, (2, seeds, 100))
        _, low, high, _ = paired_test(*sides, 500)
        outside += low > 0 or high < 0
    assert outside / 300 < 0.07


@pytest.mark.parametrize(("seeds", "bound"), [(2, 0.15), (3, 0.11), (5, 0.08)])
def test_where_one_model_scatters_far_more_few_seeds_tell_them_apart_somewhat_more_often(
    seeds, bound
):
    rng, outside = np.random.default_rng(0), 0
    luck = np.array([0.045, 0.0045])[:, None, None]
    for _ in range(600):
        sides = rng.normal(0, 1, (2, seeds, 1)) * luck + rng.normal(0, 0.09, (2, seeds, 100))
        _, low, high, _ = paired_test(*sides, 500)
        outside += low > 0 or high < 0
    assert 0.03 < outside / 600 < bound


def test_few_seeds_widen_an_interval_only_where_they_matter():
    values = scores(100)
    alike, apart = (values + np.array([[-d], [d]]) for d in (0.0005, 0.05))
    once, twice = bootstrap_interval(values), bootstrap_interval(alike)
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high), abs=2e-3)
    assert np.ptp(bootstrap_interval(apart)[1:]) > 5 * np.ptp(once[1:])


def test_of_a_side_of_one_seed_only_the_other_sides_luck_is_in_the_interval():
    images, levels = scores(200), np.array([[0.02], [-0.02], [0.01]])
    one = paired_test(images + levels, images + 0.1)
    theirs = stats.ttest_1samp(levels.ravel(), 0.1).confidence_interval()
    assert one[1:3] == pytest.approx((theirs.low - 0.1, theirs.high - 0.1))


def test_a_constant_has_no_width():
    assert bootstrap_interval(np.full(20, 0.5)) == pytest.approx((0.5, 0.5, 0.5))


def test_results_are_the_same_on_each_call():
    values = scores(40)
    assert bootstrap_interval(values) == bootstrap_interval(values)


def test_one_image_says_nothing_of_a_difference():
    test = paired_test([[0.9], [0.8]], [[0.5], [0.4]])
    assert test == pytest.approx((0.4, np.nan, np.nan, 1.0), nan_ok=True)


def test_one_video_says_nothing_of_others():
    values = np.array([scores(20), scores(20, seed=1)])
    of_one, of_two = (bootstrap_interval(values, groups=g) for g in ([0] * 20, [0, 1] * 10))
    assert of_one == pytest.approx((values.mean(), np.nan, np.nan), nan_ok=True)
    assert of_two.low < values.mean() < of_two.high


def test_seeds_of_two_models_are_no_pairs_and_their_images_are():
    rng = np.random.default_rng(0)
    hard, a, b = (
        rng.normal(0, 0.3, 400),
        rng.normal(0.8, 0.02, (6, 1)),
        rng.normal(0.7, 0.05, (4, 1)),
    )
    ours = paired_test(a + hard, b + hard)  # hard images are hard for both
    welch = stats.ttest_ind(a, b, equal_var=False)
    theirs = welch.confidence_interval()
    assert ours[:3] == pytest.approx((a.mean() - b.mean(), theirs.low[0], theirs.high[0]))
    same = paired_test(a + hard, a + hard)  # equal seeds are no pairs
    assert same.low < -0.005 < 0.005 < same.high
    with pytest.raises(ValueError, match="the same images"):
        paired_test(a + hard, hard[:3])


def frames_of_videos(videos: int, each: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores with a true mean of 0.8, most of whose spread is that of whole videos; and the videos."""
    rng = np.random.default_rng(seed)
    spread = rng.normal(0, 0.1, (videos, 1)) + rng.normal(0, 0.05, (videos, each))
    return 0.8 + spread.ravel(), np.repeat(np.arange(videos), each)


def test_frames_of_one_video_are_drawn_together():
    values, videos = frames_of_videos(40, 1, seed=0)
    assert bootstrap_interval(values, groups=videos) == bootstrap_interval(values)
    many = np.repeat(values, 5), np.repeat(videos, 5)  # equal frames tell no more than one
    assert bootstrap_interval(many[0], groups=many[1]) == pytest.approx(bootstrap_interval(values))
    assert paired_test(*[many[0], 1 - many[0]], groups=many[1]) == pytest.approx(
        paired_test(values, 1 - values)
    )
    uneven = bootstrap_interval([0.2] * 9 + [0.8], groups=[0] * 9 + [1])
    assert uneven.mean == pytest.approx(0.26)  # a mean over frames, not over videos
    with pytest.raises(ValueError, match="one an image"):
        bootstrap_interval(values, groups=videos[1:])


@pytest.mark.parametrize("groups", [[0.0, np.nan, 1.0], ["a", None, "b"]])
def test_a_missing_label_is_no_group(groups):
    with pytest.raises(ValueError, match="labels are missing"):
        bootstrap_interval([0.1, 0.2, 0.3], groups=groups)


@pytest.mark.parametrize("resamples", [-1, 0, 1, 99])
def test_a_handful_of_resamples_is_no_interval(resamples):
    with pytest.raises(ValueError, match=f"resamples: found {resamples}"):
        paired_test([0.9, 0.8, 0.7], [0.8, 0.6, 0.9], resamples)


@pytest.mark.parametrize("count", [6, 30])
def test_interval_over_videos_covers_the_true_mean_and_one_over_their_frames_does_not(count):
    covered = {True: 0, False: 0}
    for seed in range(300):
        values, videos = frames_of_videos(count, 6, seed)
        for grouped in covered:
            _, low, high = bootstrap_interval(values, 500, groups=videos if grouped else None)
            covered[grouped] += low <= 0.8 <= high
    assert covered[True] / 300 > 0.91
    assert covered[False] / 300 < 0.75


@pytest.mark.parametrize(
    ("values", "message"),
    [([], "shape"), (np.zeros((2, 2, 2)), "shape"), ([0.5, np.nan], "NaN"), ([np.inf], "NaN")],
)
def test_values_that_cannot_be_averaged_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values)


def test_the_p_value_is_below_5_percent_where_the_interval_leaves_out_zero():
    agreed = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        a, b = rng.normal(0.01, 0.05, (3, 40)), rng.normal(0, 0.05, (2, 40))
        _, low, high, p = paired_test(a + rng.normal(0, 0.02, (3, 1)), b, 500)
        assert (p < 0.05) == (low > 0 or high < 0)
        agreed.append(p < 0.05)
    assert 0 < sum(agreed) < 200


def test_the_p_value_of_one_training_agrees_with_the_t_test_where_that_is_valid():
    rng = np.random.default_rng(0)
    b = rng.normal(0.7, 0.1, 200)
    a = b + rng.normal(0.01, 0.1, 200)
    assert paired_test(a, b).p_value == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.02)


def test_the_p_value_of_seeds_agrees_with_welchs_test():
    rng = np.random.default_rng(0)
    hard, a, b = (
        rng.normal(0, 0.3, 400),
        rng.normal(0.72, 0.02, (5, 1)),
        rng.normal(0.7, 0.03, (4, 1)),
    )
    welch = stats.ttest_ind(a, b, equal_var=False).pvalue[0]
    assert 0.01 < welch < 0.9
    assert paired_test(a + hard, b + hard).p_value == pytest.approx(welch, rel=0.01)


@pytest.mark.parametrize(("seeds", "low", "high"), [(2, 0.1, 0.25), (3, 0, 0.08)])
def test_three_seeds_are_enough_for_a_verdict_among_many_and_two_are_not(seeds, low, high):
    """How often any of ten comparisons of five models that are alike is called a difference."""
    rng, families = np.random.default_rng(0), 150
    found = 0
    for _ in range(families):
        models = rng.normal(0, 0.03, (5, seeds, 1)) + rng.normal(0, 0.09, (5, seeds, 100))
        tests = [paired_test(a, b, 300).p_value for a, b in combinations(models, 2)]
        found += holm(tests).min() < 0.05
    assert low <= found / families < high


def test_paired_test_finds_a_small_steady_gain_that_unpaired_intervals_hide():
    b = scores(200)
    a = b + np.random.default_rng(1).normal(0.01, 0.02, 200)
    assert bootstrap_interval(a).low < bootstrap_interval(b).high
    test = paired_test(a, b)
    assert test.p_value < 0.001
    assert 0 < test.low < test.mean < test.high


def test_paired_test_of_equal_models_gives_1_and_swapping_changes_the_sign():
    a, b = scores(30), scores(30, seed=1)
    assert paired_test(a, a) == (0, 0, 0, 1)
    assert paired_test(b + 0.1, b).p_value == pytest.approx(0, abs=1e-6)  # all alike
    there, back = paired_test(a, b), paired_test(b, a)
    assert there.mean == pytest.approx(-back.mean)
    assert there.p_value == pytest.approx(back.p_value, abs=0.02)
    with pytest.raises(ValueError, match="same images"):
        paired_test(a, b[:20])


def test_holm_worked_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.5, 0.9, 0.5]), [1, 1, 1])
    np.testing.assert_allclose(holm([0.02]), [0.02])
    assert holm([]).shape == (0,)


def test_holm_lies_between_no_correction_and_bonferroni():
    p = np.random.default_rng(0).random(20) ** 3
    corrected = holm(p)
    assert (corrected >= p).all()
    assert (corrected <= np.minimum(20 * p, 1)).all()
    np.testing.assert_array_equal(np.argsort(p)[:3], np.argsort(corrected, kind="stable")[:3])


@pytest.mark.parametrize("p_values", [[0.1, 1.2], [-0.1], [np.nan], [[0.1]]])
def test_holm_refuses_what_is_no_list_of_p_values(p_values):
    with pytest.raises(ValueError, match="p-values"):
        holm(p_values)
