"""Every registered model keeps the same contract; UltraSeg's blocks follow their equations."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ultraseg_lib.models import (
    MODELS,
    create_model,
    egeunet,
    lbunet,
    ultraseg,
)
from ultraseg_lib.models.layers import (
    GroupShuffleAttention,
    PredictGatedFusion,
    resize,
    resize_probability,
)
from ultraseg_lib.models.ultraseg import (
    AttentionGuidedFusion,
    EnhancedDilatedBlock,
    SimpleSpatialAttention,
)

STORED = Path(__file__).with_name("stored_logits.json")
SIZES = ((128, 128), (256, 256), (352, 352), (96, 160))
SUPERVISED = {"lbunet": (5, 3), "egeunet": (5, 0)}  # region and boundary maps; UltraSeg: 4 and 3


def random_images(count: int, height: int, width: int) -> Tensor:
    """Uniform noise (count, 3, height, width), the same on every machine."""
    generator = np.random.default_rng(0)
    return torch.from_numpy(generator.random((count, 3, height, width), dtype=np.float32))


def set_known_weights(model: nn.Module) -> nn.Module:
    """Fill a model with numbers that do not depend on torch's random stream or the machine."""
    generator = np.random.default_rng(1)
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        noise = torch.from_numpy(generator.uniform(-1, 1, value.shape).astype(np.float32))
        if value.ndim > 1 and not name.endswith("seed"):  # a convolution of unit gain
            value.copy_(noise * (6 / value[0].numel()) ** 0.5)
        else:  # norms, biases, scalars, learned maps: around their own start
            start = 0.0 if name.endswith(("bias", "mean")) else 1.0
            value.copy_(start + 0.5 * noise)
    return model


def known_logits(name: str) -> list[float]:
    """16 logits of a model with known weights for one known image."""
    model = set_known_weights(create_model(name)).eval()
    with torch.no_grad():
        logits = model(random_images(1, 64, 64)).logits
    return [round(value, 6) for value in logits[0, 0, 8::16, 8::16].flatten().tolist()]


@pytest.fixture(scope="class", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="class")
def model(name: str) -> nn.Module:
    torch.manual_seed(0)
    return create_model(name)


class TestEveryModel:
    @pytest.mark.parametrize("size", [*SIZES, "smallest"], ids=str)
    def test_logits_have_the_size_of_the_image(self, name, model, size) -> None:
        if size == (352, 352) and name in ("unet_base", "unet_medium"):
            pytest.skip("takes seconds; narrower U-Nets are measured at this size")
        height, width = (model.stride, model.stride) if size == "smallest" else size
        with torch.no_grad():
            prediction = model.eval()(random_images(1, height, width))
        assert prediction.logits.shape == (1, 1, height, width)
        assert prediction.logits.dtype == torch.float32
        assert prediction.logits.isfinite().all()
        assert prediction[1:] == ((), (), None)

    def test_deep_supervision_adds_maps_and_changes_no_logit(self, name, model) -> None:
        image = random_images(2, 64, 96)
        regions, boundaries = SUPERVISED.get(name, (4, 3) if "ultraseg" in name else (0, 0))
        with torch.no_grad():
            alone = model.eval()(image)
            supervised = model(image, deep_supervision=True)
        assert torch.equal(alone.logits, supervised.logits)
        assert (len(supervised.regions), len(supervised.boundaries)) == (regions, boundaries)
        for logits in (*supervised.regions, *supervised.boundaries):
            assert logits.shape == (2, 1, 64, 96)
            assert logits.isfinite().all()
        assert supervised.bottleneck.shape[0] == 2
        assert supervised.bottleneck.ndim == 4

    def test_every_parameter_has_a_finite_gradient(self, model) -> None:
        model.train().zero_grad()
        prediction = model(random_images(2, 64, 64), deep_supervision=True)
        maps = (prediction.logits, *prediction.regions, *prediction.boundaries)
        sum(logits.square().mean() for logits in maps).backward()
        missing = [key for key, value in model.named_parameters() if value.grad is None]
        broken = [
            key
            for key, value in model.named_parameters()
            if value.grad is not None and not value.grad.isfinite().all()
        ]
        assert (missing, broken) == ([], [])

    def test_images_of_a_batch_do_not_mix_in_eval_mode(self, model) -> None:
        first, second, third = random_images(3, 64, 64)
        with torch.no_grad():
            logits = [
                model.eval()(torch.stack([first, other])).logits[0] for other in (second, third)
            ]
        torch.testing.assert_close(*logits, rtol=0, atol=1e-6)

    def test_weights_survive_a_file(self, name, model, tmp_path) -> None:
        save_file(model.state_dict(), tmp_path / "weights.safetensors")
        loaded = create_model(name, weights=tmp_path / "weights.safetensors")
        state = loaded.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())

    def test_seed_decides_the_weights(self, name) -> None:
        states = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            states.append(nn.utils.parameters_to_vector(create_model(name).parameters()))
        assert torch.equal(states[0], states[1])
        assert not torch.equal(states[0], states[2])

    def test_logits_are_the_stored_ones(self, name) -> None:
        stored = json.loads(STORED.read_text()).get(name)
        if stored is None:
            pytest.skip("a model of one's own, of which no logits are stored")
        np.testing.assert_allclose(known_logits(name), stored, rtol=1e-4, atol=1e-4)

    def test_another_size_is_refused(self, model) -> None:
        side = 5 * model.stride + 1
        with pytest.raises(ValueError, match=rf"multiples of {model.stride}; resize to"):
            model(torch.zeros(1, 3, side, side))

    @pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 4, 64, 64), (1, 3, 0, 64)])
    def test_another_shape_is_refused(self, model, shape) -> None:
        with pytest.raises(ValueError, match="found an image of shape"):
            model(torch.zeros(shape))

    @pytest.mark.parametrize(
        "image", [torch.zeros(1, 3, 64, 64, dtype=torch.uint8), np.zeros((1, 3, 64, 64))]
    )
    def test_pixels_that_are_no_float_tensor_are_refused(self, model, image) -> None:
        with pytest.raises(ValueError, match=r"give a float tensor in \[0, 1\]"):
            model(image)


class TestRegistry:
    def test_strides_are_stated(self) -> None:
        expected = {"lbunet": 32, "egeunet": 32, "fastscnn": 4}
        assert {name: row.build.stride for name, row in MODELS.items()} == {
            name: expected.get(name, 16) for name in MODELS
        }

    def test_unknown_name_is_refused_with_close_ones(self) -> None:
        with pytest.raises(
            ValueError, match=r"model: unknown 'ultraseg_130'.*did you mean ultraseg_130k"
        ):
            create_model("ultraseg_130")

    def test_unknown_variant_is_refused_with_known_ones(self) -> None:
        with pytest.raises(TypeError, match=r"ultraseg_130k has no variant attention; .*ssa"):
            create_model("ultraseg_130k", attention=True)

    @pytest.mark.parametrize("variant", ["edb", "edb_weight", "fusion"])
    def test_unknown_value_is_refused_with_known_ones(self, variant) -> None:
        with pytest.raises(ValueError, match=f"{variant}: unknown 'other'; choose from"):
            create_model("ultraseg_130k", **{variant: "other"})

    @pytest.mark.parametrize(
        "channels", [(8, 16, 48), (8, 16, 48, 64, 96, 128), (8, 16, 50, 64, 96), (8, 16, 40, 64)]
    )
    def test_widths_that_do_not_divide_are_refused(self, channels) -> None:
        with pytest.raises(ValueError, match="channels: found"):
            create_model("ultraseg_130k", channels=channels)

    def test_an_unknown_reading_of_the_block_is_refused(self) -> None:
        with pytest.raises(ValueError, match="reading: unknown 'as-written'"):
            EnhancedDilatedBlock(48, "as-written")

    def test_weights_of_another_model_are_refused(self, tmp_path) -> None:
        save_file(create_model("ultraseg_108k").state_dict(), tmp_path / "108k.safetensors")
        (tmp_path / "broken.safetensors").write_bytes(b"no weights")
        for name in ("108k", "broken"):
            with pytest.raises(
                ValueError, match=rf"{name}.*: no weights of ultraseg_130k as asked for, or broken"
            ):
                create_model("ultraseg_130k", weights=tmp_path / f"{name}.safetensors")

    def test_head_may_be_wider(self) -> None:
        model = create_model("ultraseg_130k", out_channels=2).eval()
        with torch.no_grad():
            assert model(random_images(1, 32, 32)).logits.shape == (1, 2, 32, 32)


class TestInference:
    @pytest.mark.parametrize("module", [ultraseg, lbunet, egeunet])
    def test_no_map_is_resized_unless_asked(self, module, monkeypatch) -> None:
        def resized(*_: object) -> None:
            raise AssertionError("the maps were brought to full size")

        monkeypatch.setattr(module, "supervised_prediction", resized)
        model = create_model(
            {ultraseg: "ultraseg_130k"}.get(module, module.__name__.split(".")[-1])
        )
        assert model(random_images(2, 64, 64)).logits.shape == (2, 1, 64, 64)
        with pytest.raises(AssertionError, match="full size"):
            model(random_images(2, 64, 64), deep_supervision=True)


class TestVariants:
    @pytest.mark.parametrize(
        "variants",
        [
            {"edb": "as_written"},
            {"edb": "none"},
            {"edb_weight": "fixed"},
            {"fusion": "fixed"},
            {"agf": False},
            {"ssa": False},
            {"channels": (8, 16, 48, 64)},
        ],
        ids=str,
    )
    def test_each_ablation_trains(self, variants) -> None:
        model = create_model("ultraseg_130k", **variants)
        prediction = model(random_images(2, 64, 64), deep_supervision=True)
        maps = (prediction.logits, *prediction.regions, *prediction.boundaries)
        sum(logits.square().mean() for logits in maps).backward()
        assert all(value.grad is not None for value in model.parameters())
        assert len(prediction.boundaries) == 3

    def test_130k_without_its_additions_is_108k(self) -> None:
        model = create_model("ultraseg_130k", agf=False, ssa=False, edb_weight="fixed")
        assert model.state_dict().keys() == create_model("ultraseg_108k").state_dict().keys()

    def test_learned_scalars_have_the_names_that_a_study_logs(self) -> None:
        model = create_model("ultraseg_130k")
        scalars = {key: value.item() for key, value in model.named_parameters() if not value.ndim}
        assert scalars == pytest.approx(
            {
                "ssa.alpha": 0.3,
                **{f"encoder3.context.{index}.residual_weight": 0.1 for index in (0, 1)},
                **{f"decoder{level}.fusion.region_weight": 0.3 for level in (4, 3, 2, 1)},
                **{f"decoder{level}.fusion.boundary_weight": 0.1 for level in (3, 2, 1)},
            }
        )


class TestBlocks:
    def test_edb_as_written_keeps_the_thirds_apart(self) -> None:
        """Eq. 2: a branch sees its own third; in the released code every branch sees everything."""
        for reading, seen in (("as_written", 4), ("released", 12)):
            block = EnhancedDilatedBlock(12, reading)
            feature = torch.rand(1, 12, 9, 9, requires_grad=True)
            inputs = feature.chunk(3, dim=1) if block.split else [feature] * 3
            block.branches[0](inputs[0]).sum().backward()
            assert int((feature.grad.abs().sum(dim=(0, 2, 3)) > 0).sum()) == seen

    def test_gsa_maps_do_not_depend_on_the_image(self) -> None:
        block = set_known_weights(GroupShuffleAttention(8, 4))
        maps = []
        for image in (torch.zeros(1, 8, 12, 20), torch.rand(3, 8, 12, 20)):
            hooks = [
                learned.register_forward_hook(lambda *call: maps.append(call[2]))
                for learned in block.learned_maps
            ]
            block(image)
            for hook in hooks:
                hook.remove()
        assert all(
            torch.equal(first, second) for first, second in zip(maps[:4], maps[4:], strict=True)
        )
        assert block.maps(12, 20).shape == (1, 8, 12, 20)

    def test_gsa_order_is_second_fourth_first_third(self) -> None:
        block = GroupShuffleAttention(8, 8).eval()
        block.norm1, block.norm2, block.mix = nn.Identity(), nn.Identity(), nn.Identity()
        block.maps = lambda height, width: torch.ones(1, 8, height, width)
        feature = torch.arange(8.0).view(1, 8, 1, 1)
        assert block(feature).flatten().tolist() == [2, 3, 6, 7, 0, 1, 4, 5]

    def test_fusion_is_equation_1(self) -> None:
        feature, skip = torch.rand(2, 1, 8, 4, 4)
        region, boundary = torch.randn(2, 1, 1, 4, 4)
        fused = PredictGatedFusion(8, level=1, learned=True, boundary=True)(
            feature, skip, region, boundary
        )
        share = 1 + 0.3 * region.sigmoid() + 0.1 * boundary.sigmoid()
        torch.testing.assert_close(fused, feature + skip * share)

    def test_ssa_is_equation_4(self) -> None:
        feature = torch.randn(1, 8, 4, 4)
        gated = feature * feature.mean(dim=1, keepdim=True).sigmoid()
        expected = 0.7 * feature + 0.3 * gated
        torch.testing.assert_close(SimpleSpatialAttention()(feature), expected)

    def test_agf_is_a_mean_of_both_stages(self) -> None:
        block = AttentionGuidedFusion(4, 4).eval()
        nn.init.dirac_(block.project.weight)
        nn.init.zeros_(block.project.bias)
        fused = block(torch.full((1, 4, 8, 8), 1.0), torch.full((1, 4, 4, 4), 3.0))
        assert fused.shape == (1, 4, 4, 4)
        assert ((fused > 1) & (fused < 3)).all()

    def test_boundary_logits_are_those_of_the_resized_probability(self) -> None:
        logits = torch.tensor([[[[-200.0, -30.0], [0.0, 30.0]]]], requires_grad=True)
        resized = resize_probability(logits, 5, 5)
        torch.testing.assert_close(resized.sigmoid(), resize(logits.sigmoid(), 5, 5))
        resized.sum().backward()
        assert resized.isfinite().all()
        assert logits.grad.isfinite().all()
