"""Names and sizes of published models, for every tensor list that is known."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.reseed import tensor_list
from unified_video_action.compat.published import infer_network, infer_spec
from unified_video_action.compat.reference_names import (
    UNUSED,
    load_reference,
    matching,
    our_name,
    reference_name,
    split_policy,
    to_ours,
)
from unified_video_action.compat.tensors import Shapes, shapes_of
from unified_video_action.instantiate import build_dataclass
from unified_video_action.model.config import ModelConfig
from unified_video_action.model.uva import UVA
from unified_video_action.spec import Horizon, LatentShape, ModelSpec

PUSHT = ModelSpec(Horizon(), LatentShape(16, 16, 16), action_dim=2)
SPECS = {
    "pusht": PUSHT,
    "libero10": replace(PUSHT, action_dim=10, text_dim=512),
    "toolhang": replace(
        PUSHT,
        action_dim=10,
        views=2,
        predicted_views=2,
        proprio_dim=9,
        proprio_steps=16,
        proprio_output_dim=9,
    ),
    "umi": replace(
        PUSHT,
        horizon=Horizon(action_offset=1),
        action_dim=10,
        proprio_dim=16,
        proprio_steps=4,
        proprio_output_dim=6,
        text_dim=512,
    ),
}


def spec_of(name: str, shapes: Shapes) -> ModelSpec:
    umi = name == "umi"
    return infer_spec(shapes, different_history_freq=umi, shift_action=not umi)


def model_of(spec: ModelSpec, shapes: Shapes) -> UVA:
    with torch.device("meta"):
        return UVA(spec, build_dataclass(ModelConfig, infer_network(shapes), "model"))


def empty(shapes: Shapes) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize("name", SPECS)
def test_sizes_are_read_off_the_tensors(name: str) -> None:
    assert spec_of(name, tensor_list(name)) == SPECS[name]
    network = infer_network(tensor_list(name))
    assert network["transformer"] == {
        "dim": 768,
        "encoder_depth": 12,
        "decoder_depth": 12,
        "heads": 12,
        "mlp_ratio": 4.0,
    }
    assert network["video_head"] == network["action_head"] == {"width": 1024, "depth": 6}


@pytest.mark.parametrize("name", SPECS)
def test_every_tensor_has_its_place(name: str) -> None:
    shapes = tensor_list(name)
    model = model_of(SPECS[name], shapes)
    ours = to_ours(empty(shapes), shapes_of(model.state_dict()), name)
    assert shapes_of(ours) == shapes_of(model.state_dict())
    assert all(reference_name(our_name(key)) == key for key in shapes)


def test_values_travel_and_unused_tensors_are_left() -> None:
    shapes = {key: shape for key, shape in tensor_list("umi").items() if "blocks" not in key and "fc.0" not in key}
    state = {key: torch.randn(shape) for key, shape in shapes.items()}
    expected = {our_name(key): shape for key, shape in shapes.items() if key not in UNUSED}
    ours = to_ours(state, expected, "umi")
    assert torch.equal(ours["mar.inputs.history_projs.0.weight"], state["z_proj_cond.weight"])
    assert torch.equal(ours["proprio_head.trunk.interpolate.bias"], state["diffproploss.interpolate.bias"])
    assert set(UNUSED) <= set(state) and len(ours) == len(state) - len(UNUSED)


def test_every_misfit_is_listed_by_its_published_name() -> None:
    shapes = tensor_list("pusht")
    expected = shapes_of(model_of(PUSHT, shapes).state_dict())
    state = empty(shapes)
    del state["z_proj.bias"], state["encoder_blocks.3.attn.qkv.weight"]
    state["surplus"] = torch.empty(1)
    state["fake_latent_x"] = torch.empty(1, 5)
    with pytest.raises(ValueError) as caught:
        to_ours(state, expected, "file.ckpt")
    for line in (
        "file.ckpt: 4 tensors do not fit",
        "missing: z_proj.bias (768,)",
        "missing: encoder_blocks.3.attn.qkv.weight (2304, 768)",
        "extra: surplus (1,)",
        "misshapen: fake_latent_x is (1, 5), expected (1, 768)",
    ):
        assert line in str(caught.value)


def test_the_unused_tensors_are_used_where_there_is_a_wrist_camera() -> None:
    shapes = tensor_list("toolhang")
    state = empty(shapes)
    del state["proprioception_image_proj_cond.bias"]
    with pytest.raises(ValueError, match=r"missing: proprioception_image_proj_cond.bias"):
        load_reference(model_of(SPECS["toolhang"], shapes), state, "toolhang")


def test_parts_without_a_counterpart_are_named() -> None:
    with pytest.raises(ValueError, match="no counterpart of auxiliary_head.0.weight"):
        to_ours({}, {"auxiliary_head.0.weight": (1,)}, "x")


def test_a_whole_policy_is_split_into_its_parts() -> None:
    names = {
        name.replace("model.", "model.module.", 1): shape for name, shape in tensor_list("policy_pusht_full").items()
    }
    policy = split_policy(empty(names) | {"_dummy_variable": torch.empty(0)}, "full")
    assert shapes_of(policy.model) == tensor_list("pusht")
    assert shapes_of(policy.codec) == tensor_list("vae")
    assert policy.normalizer["action.input_stats.max"].shape == (2,)
    assert not policy.text
    with pytest.raises(ValueError, match="full: tensors of no known part: obs_encoder.weight"):
        split_policy({"model.x": torch.empty(1), "obs_encoder.weight": torch.empty(1)}, "full")
    with pytest.raises(ValueError, match="no tensors of the model"):
        split_policy({"vae_model.x": torch.empty(1)}, "full")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"proj_cond_x_layer.weight": (768, 2305)}, "proj_cond_x_layer"),
        ({"proj_cond_x_layer.weight": (768, 768 * 5)}, "proj_cond_x_layer takes 5 inputs"),
        ({"spatial_pos_embed": (1, 200, 768)}, "200 cells"),
        ({"z_proj.weight": None}, "not a published model: it has no tensor z_proj.weight"),
    ],
)
def test_sizes_that_make_no_sense_are_named(change: dict, message: str) -> None:
    shapes = {key: shape for key, shape in (tensor_list("pusht") | change).items() if shape}
    with pytest.raises(ValueError, match=message):
        infer_spec(shapes)


def test_an_unknown_width_is_named() -> None:
    with pytest.raises(ValueError, match="model width 512"):
        infer_network(tensor_list("pusht") | {"encoder_norm.weight": (512,)})


def mar_shapes() -> Shapes:
    """Tensors of MAR-B itself, as its authors publish it."""
    uva, dim = tensor_list("pusht"), 768
    shared = ("z_proj.", "z_proj_ln.", "encoder_", "decoder_blocks", "decoder_norm", "decoder_embed", "diffloss.")
    return {name: shape for name, shape in uva.items() if name.startswith(shared)} | {
        "fake_latent": (1, dim),
        "class_emb.weight": (1000, dim),
        "mask_token": (1, 1, dim),
        "encoder_pos_embed_learned": (1, 320, dim),
        "decoder_pos_embed_learned": (1, 320, dim),
        "diffusion_pos_embed_learned": (1, 256, dim),
    }


def test_a_new_model_starts_from_what_fits_of_mar() -> None:
    shapes = mar_shapes()
    assert infer_network(shapes) == infer_network(tensor_list("pusht"))
    expected = shapes_of(model_of(PUSHT, shapes).state_dict())
    found = matching(empty(shapes), expected, "mar")
    assert sorted(found.left) == [
        "class_emb.weight",
        "decoder_pos_embed_learned",
        "diffusion_pos_embed_learned",
        "encoder_pos_embed_learned",
        "fake_latent",
        "mask_token",
    ]
    assert {"mar.inputs.future_projs.0.weight", "video_heads.0.net.final.linear.bias"} <= set(found.tensors)
    assert set(found.tensors) | set(found.kept) == set(expected)
    assert {name.split(".")[0] for name in found.kept} == {"mar", "action_head"}
    with pytest.raises(ValueError, match="mar: no tensor fits"):
        matching({"class_emb.weight": torch.empty(2)}, expected, "mar")
