"""Names and sizes of published models, for every tensor list that is known."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.reseed import tensor_list
from unified_video_action.compat.published import infer_network, infer_spec
from unified_video_action.compat.reference_names import (
    UNUSED,
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
STATES = {"action_dim": 10, "proprio_dim": 9, "proprio_steps": 16, "proprio_output_dim": 9}
UMI = {"action_dim": 10, "proprio_dim": 16, "proprio_steps": 4, "proprio_output_dim": 6, "text_dim": 512}
SPECS = {
    "pusht": PUSHT,
    "libero10": replace(PUSHT, action_dim=10, text_dim=512),
    "toolhang": replace(PUSHT, views=2, predicted_views=2, **STATES),
    "umi": replace(PUSHT, horizon=Horizon(action_offset=1), **UMI),
}


def model_shapes(name: str) -> Shapes:
    """Of our model for a published one."""
    with torch.device("meta"):
        network = build_dataclass(ModelConfig, infer_network(tensor_list(name)), "model")
        return shapes_of(UVA(SPECS[name], network).state_dict())


def empty(shapes: Shapes) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize("name", SPECS)
def test_sizes_are_read_off_the_tensors_and_every_tensor_has_its_place(name: str) -> None:
    shapes = tensor_list(name)
    umi = name == "umi"
    assert infer_spec(shapes, different_history_freq=umi, shift_action=not umi) == SPECS[name]
    network = infer_network(shapes)
    blocks = {"encoder_depth": 12, "decoder_depth": 12}
    assert network["transformer"] == {"dim": 768, "heads": 12, "mlp_ratio": 4.0, **blocks}
    assert network["video_head"] == network["action_head"] == {"width": 1024, "depth": 6}
    expected = model_shapes(name)
    assert shapes_of(to_ours(empty(shapes), expected, name)) == expected
    assert all(reference_name(our_name(key)) == key for key in shapes)
    if name == "umi":  # has no wrist camera, but the tensors for one
        assert set(UNUSED) <= set(shapes) and len(expected) == len(shapes) - len(UNUSED)


def test_every_misfit_is_listed_by_its_published_name() -> None:
    state = empty(tensor_list("pusht"))
    del state["z_proj.bias"]
    state |= {"surplus": torch.empty(1), "fake_latent_x": torch.empty(1, 5)}
    with pytest.raises(ValueError) as caught:
        to_ours(state, model_shapes("pusht"), "file.ckpt")
    for line in ("missing: z_proj.bias (768,)", "extra: surplus (1,)", "fake_latent_x is (1, 5), expected (1, 768)"):
        assert line in str(caught.value)


def test_a_whole_policy_is_split_into_its_parts() -> None:
    state = empty(tensor_list("policy_pusht_full")) | {"_dummy_variable": torch.empty(0)}
    wrapped = {name.replace("model.", "model.module.", 1): tensor for name, tensor in state.items()}
    for each in (state, wrapped, {f"_orig_mod.{name}": tensor for name, tensor in state.items()}):
        parts = split_policy(each, "full")
        assert shapes_of(parts["model"]) == tensor_list("pusht")
        assert shapes_of(parts["codec"]) == tensor_list("vae")
        assert parts["normalizer"]["action.input_stats.max"].shape == (2,)
        assert not parts["text"]
    with pytest.raises(ValueError, match="full: tensors of no known part: obs_encoder.weight"):
        split_policy({"model.x": torch.empty(1), "obs_encoder.weight": torch.empty(1)}, "full")
    with pytest.raises(ValueError, match="no tensors of the model"):
        split_policy({"vae_model.x": torch.empty(1)}, "full")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"proj_cond_x_layer.weight": (768, 768 * 5)}, "proj_cond_x_layer takes 5 inputs"),
        ({"z_proj.weight": None}, "not a published model: it has no tensor z_proj.weight"),
    ],
)
def test_sizes_that_make_no_sense_are_named(change: dict, message: str) -> None:
    shapes = {key: shape for key, shape in (tensor_list("pusht") | change).items() if shape}
    with pytest.raises(ValueError, match=message):
        infer_spec(shapes)
        infer_network(shapes)


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
    assert infer_network(mar_shapes()) == infer_network(tensor_list("pusht"))
    expected = model_shapes("pusht")
    found = matching(empty(mar_shapes()), expected, "mar")
    positions = [f"{part}_pos_embed_learned" for part in ("decoder", "diffusion", "encoder")]
    assert sorted(found.left) == ["class_emb.weight", *positions, "fake_latent", "mask_token"]
    assert {"mar.inputs.future_projs.0.weight", "video_heads.0.net.final.linear.bias"} <= set(found.tensors)
    assert set(found.tensors) | set(found.kept) == set(expected)
    assert {name.split(".")[0] for name in found.kept} == {"mar", "action_head"}
    with pytest.raises(ValueError, match="mar: no tensor fits"):
        matching({"class_emb.weight": torch.empty(2)}, expected, "mar")
