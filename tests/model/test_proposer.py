"""The proposer against the released one's numbers, its layers against transformers', and its variants."""

import json
import sys
import zlib

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torchvision.ops import box_convert
from transformers import DeformableDetrConfig
from transformers.models.deformable_detr import modeling_deformable_detr as theirs

from model.losses import proposer_loss
from model.proposer import (
    CoordinatesProposer,
    DeformableProposer,
    ProposerConfig,
    ProposerOutput,
    build_proposer,
    format_boxes,
    parse_boxes,
    propose,
)
from model.proposer.layers import DecoderLayer, DeformableAttention, cell_centres, sine_code
from trackers.seeded import seed_module

HIDDEN, BOXES = 1e-4, 1e-5  # the golden vectors' tolerances
TINY = ProposerConfig.tiny()
KINDS = ["deformable", "detr", "fcos", "mlp"]


def on_meta(config: ProposerConfig | None = None) -> torch.nn.Module:
    with torch.device("meta"):
        return build_proposer(config)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def maps(batch: int = 2, height: int = 6, width: int = 11) -> torch.Tensor:
    return torch.randn(batch, 256, height, width, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tiny() -> DeformableProposer:
    return seed_module(DeformableProposer(TINY), "tiny:", extra=False).eval()


# --- the released network -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden(shared):
    sys.path.insert(0, str(shared / "golden"))
    return shared / "golden" / "proposer"


@pytest.fixture(scope="module")
def net() -> DeformableProposer:
    """Full size, name-seeded."""
    return seed_module(on_meta().to_empty(device="cpu"), "s0:", extra=False).eval()


def test_state_dict_is_the_released_one(golden):
    keys = json.loads((golden / "keys.json").read_text())
    net = on_meta()
    state = net.state_dict(keep_vars=True)
    assert {name: list(tensor.shape) for name, tensor in state.items()} == {
        k["name"]: k["shape"] for k in keys
    }
    assert all(state[k["name"]] is state[k["alias_of"]] for k in keys if "alias_of" in k)
    assert count(net) == 11_181_225


def test_seeded_weights_have_the_golden_checksums(golden, net):
    state = net.state_dict()
    for name, check in json.loads((golden / "weights_check.json").read_text())["tensors"].items():
        assert zlib.crc32(state[name].numpy().tobytes()) == check["crc32"], name


@pytest.fixture(scope="module", params=["map28", "map64", "map64_negated"])
def case(request, golden, net):
    """(name, golden arrays of the case, feature map, output)"""
    from golden_inputs import gaussian

    spec = json.loads((golden / "forward.json").read_text())["cases"][request.param]
    each = [
        gaussian(n, tuple(spec["feature"]["shape_each"]), "s0:") for n in spec["feature"]["names"]
    ]
    feature = torch.from_numpy(np.concatenate(each))
    arrays = np.load(golden / "forward.npz")
    wanted = {k.split("/")[1]: arrays[k] for k in arrays.files if k.startswith(request.param + "/")}
    encoder_head = net.ddetr_transformer.class_embed_enc.weight.data
    if spec["weights_change"]:
        encoder_head.neg_()
    with torch.no_grad():
        output = net(feature)
    if spec["weights_change"]:
        encoder_head.neg_()
    return request.param, wanted, feature, output


def close(found: torch.Tensor, wanted: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=0, atol=tolerance)


def test_golden_forward(case, net):
    name, wanted, feature, output = case
    with torch.no_grad():
        levels = net.input_proj(feature)
        close(levels[0][:, ::8, ::4, ::4], wanted["input_proj_every8"], HIDDEN)
        code = net.ddetr_transformer.embed(levels)[1][0] - net.ddetr_transformer.level_embed
    code = code.T.reshape(256, *feature.shape[-2:])[:, ::4, ::4]
    close(code, wanted["position_code_batch0"], HIDDEN)
    close(output.encoder_last[:, ::7, :64], wanted["encoder_last_every7_head64"], HIDDEN)
    close(output.encoder_objectness_logit, wanted["encoder_objectness_logit"], HIDDEN)
    close(
        output.encoder_box_logits[:, ::7], wanted["encoder_box_logits_every7"], HIDDEN
    )  # infinities in place too
    if name == "map64":  # the cells of the border share one value: any order among them
        np.testing.assert_array_equal(
            np.sort(output.two_stage_indices), np.sort(wanted["two_stage_indices"])
        )
    else:
        np.testing.assert_array_equal(output.two_stage_indices, wanted["two_stage_indices"])
    hidden = output.decoder_hidden_all_layers[:, :, ::25]
    close(hidden, wanted["decoder_hidden_all_layers_query_every25"], HIDDEN)
    for quantity in ("decoder_last_hidden", "logit_coco", "logit_sa1b"):
        close(output[quantity], wanted[quantity], HIDDEN)
    for quantity in ("init_reference_cxcywh", "refined_reference_all_layers", "boxes_cxcywh"):
        close(output[quantity], wanted[quantity], BOXES)


def test_golden_top100(case):
    _, wanted, _, output = case
    for row, (raw, clipped) in enumerate(
        zip(propose(output, clip=False), propose(output), strict=True)
    ):
        np.testing.assert_array_equal(raw.indices, wanted[f"top100_indices_{row}"])
        close(raw.objectness, wanted[f"top100_scores_{row}"], HIDDEN)
        close(raw.boxes_xyxy, wanted[f"top100_boxes_xyxy_{row}"], BOXES)
        assert torch.equal(raw.embeddings, output.decoder_last_hidden[row, raw.indices])
        close(clipped.boxes_xyxy, wanted[f"top100_boxes_xyxy_{row}"].clip(0, 1), BOXES)


def test_a_file_may_hold_either_name_of_a_head(tiny):
    full = tiny.state_dict()
    for lost in ("ddetr_transformer.decoder.bbox_embed.", "ddetr_transformer.class_embed_"):
        other = seed_module(DeformableProposer(TINY), "other:", extra=False)
        other.load_state_dict(
            {name: value for name, value in full.items() if not name.startswith(lost)}, strict=True
        )
        assert all(torch.equal(value, full[name]) for name, value in other.state_dict().items())
    torn = full | {"ddetr_transformer.decoder.class_embed_enc.bias": torch.ones(1)}
    with pytest.raises(ValueError, match=r"class_embed_enc\.bias .* differ"):
        DeformableProposer(TINY).load_state_dict(torn)


# --- against transformers -----------------------------------------------------------------------------------------

SHAPES = [(6, 9), (3, 5)]


@pytest.fixture(scope="module")
def pair_config():
    config = DeformableDetrConfig(
        d_model=32,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_n_points=3,
        decoder_n_points=3,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_feature_levels=2,
        disable_custom_kernels=True,
    )
    config._attn_implementation = "eager"
    ours = ProposerConfig(width=32, attention_heads=4, points=3, ffn=48, levels=2)
    return config, ours


def twins(reference: torch.nn.Module, ours: torch.nn.Module) -> list[torch.nn.Module]:
    seed_module(reference, "twins:", extra=False)
    names = {n: n.replace("mlp.", "").replace("o_proj", "out_proj") for n in reference.state_dict()}
    ours.load_state_dict({names[n]: value for n, value in reference.state_dict().items()})
    return [reference.eval(), ours.eval()]


def first(result):
    return result[0] if isinstance(result, tuple) else result


def test_layers_equal_those_of_transformers(pair_config):
    config, ours = pair_config
    g = torch.Generator().manual_seed(1)
    n = sum(h * w for h, w in SHAPES)
    memory, position = torch.randn(2, 2, n, 32, generator=g)
    query, query_position = torch.randn(2, 2, 7, 32, generator=g)
    boxes = torch.rand(2, 7, 1, 4, generator=g)
    shapes = torch.tensor(SHAPES)
    starts = torch.tensor([0, SHAPES[0][0] * SHAPES[0][1]])
    where = (shapes, SHAPES, starts)
    with torch.no_grad():
        reference, mine = twins(
            theirs.DeformableDetrMultiscaleDeformableAttention(config, num_heads=4, n_points=3),
            DeformableAttention(32, heads=4, levels=2, points=3),
        )
        wanted = first(
            reference(
                query, None, memory, None, query_position, boxes.expand(-1, -1, 2, -1), *where
            )
        )
        torch.testing.assert_close(
            mine(query + query_position, memory, boxes, SHAPES), wanted, rtol=0, atol=1e-5
        )

        reference, mine = twins(theirs.DeformableDetrDecoderLayer(config), DecoderLayer(ours))
        wanted = first(
            reference(query, query_position, boxes.expand(-1, -1, 2, -1), *where, memory, None)
        )
        torch.testing.assert_close(
            mine(query, query_position, memory, boxes, SHAPES), wanted, rtol=0, atol=1e-5
        )

        # All encoder layers at once, through the proposer's own reference points.
        transformer = DeformableProposer(
            ours.model_copy(update={"encoder_layers": 2})
        ).ddetr_transformer.eval()
        points = theirs.DeformableDetrEncoder.get_reference_points(
            tuple(SHAPES), torch.ones(2, 2, 2), "cpu"
        )
        wanted = memory
        for layer in transformer.encoder.layers:
            reference, _ = twins(theirs.DeformableDetrEncoderLayer(config), layer)
            wanted = first(reference(wanted, None, position, points, *where))
        torch.testing.assert_close(
            transformer.encode(memory, position, SHAPES), wanted, rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_encoder_token_looks_at_its_own_place(dtype):
    """Without offsets attention returns each token's value; places in bfloat16 would mix it with its neighbours'."""
    attention = DeformableAttention(8, heads=2, levels=1, points=4)
    for parameter in attention.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.eye_(attention.value_proj.weight)
    torch.nn.init.eye_(attention.output_proj.weight)
    memory = torch.randn(1, 40 * 64, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    reference = torch.cat([cell_centres((40, 64), memory.device), torch.ones(40 * 64, 2)], 1)[
        None, :, None
    ]
    with torch.no_grad():
        found = attention.to(dtype)(memory, memory, reference, [(40, 64)])
    torch.testing.assert_close(found, memory, rtol=0, atol=1e-4)


# --- behaviour ----------------------------------------------------------------------------------------------------


def test_multi_level_sizes():
    """Spec, section 8.1: of the transformer with its heads. Input projections come on top: 1x1 for each of the pyramid's
    three maps, a 3x3 convolution for the fourth level."""
    for levels, transformer, projections in (
        (2, 11_411_241, 2),
        (3, 11_707_561, 3),
        (4, 12_003_881, 3),
    ):
        net = on_meta(ProposerConfig(levels=levels))
        assert count(net.ddetr_transformer) == transformer
        assert count(net.input_proj) == projections * 66_304 + (levels - projections) * 590_592


def test_levels_read_the_last_maps_and_continue_the_pyramid():
    net = seed_module(DeformableProposer(TINY.model_copy(update={"levels": 4})), extra=False).eval()
    pyramid = [maps(1, 24, 40), maps(1, 12, 20), maps(1, 6, 10)]
    with torch.no_grad():
        assert [tuple(level.shape[-2:]) for level in net.input_proj(pyramid)] == [
            (24, 40),
            (12, 20),
            (6, 10),
            (3, 5),
        ]
        assert net(pyramid).encoder_objectness_logit.shape == (1, 960 + 240 + 60 + 15)
        two = DeformableProposer(TINY.model_copy(update={"levels": 2, "maps": 1})).eval()
        assert [tuple(level.shape[-2:]) for level in two.input_proj(pyramid)] == [(6, 10), (3, 5)]
    with pytest.raises(ValueError, match="2 feature maps, this proposer reads the last 3"):
        net(pyramid[:2])


def test_a_pyramid_or_its_last_map_is_the_same_to_one_level(tiny):
    with torch.no_grad():
        one, all_ = tiny(maps()), tiny([maps(2, 24, 44), maps(2, 12, 22), maps()])
    torch.testing.assert_close(one.boxes_cxcywh, all_.boxes_cxcywh)


def test_a_frame_is_the_same_in_any_company(tiny):
    feature = maps(3)
    with torch.no_grad():
        together, alone = tiny(feature), tiny(feature[1:2])
    assert torch.equal(together.two_stage_indices[1], alone.two_stage_indices[0])
    torch.testing.assert_close(together.boxes_cxcywh[1], alone.boxes_cxcywh[0], rtol=0, atol=BOXES)
    torch.testing.assert_close(
        together.decoder_last_hidden[1], alone.decoder_last_hidden[0], rtol=0, atol=HIDDEN
    )


def test_iterative_refinement_moves_where_later_layers_look(tiny):
    moved = DeformableProposer(TINY.model_copy(update={"iterative_refine": True})).eval()
    moved.load_state_dict(tiny.state_dict())
    with torch.no_grad():
        fixed, refined = tiny(maps()), moved(maps())
    first_layer = [output.boxes_all_layers_cxcywh[:, 0] for output in (fixed, refined)]
    assert torch.equal(*first_layer)
    assert (fixed.boxes_cxcywh - refined.boxes_cxcywh).abs().max() > 1e-3
    assert (fixed.decoder_last_hidden - refined.decoder_last_hidden).abs().max() > 1e-3
    assert torch.equal(refined.refined_reference_all_layers, refined.boxes_all_layers_cxcywh)


@pytest.mark.parametrize(
    "changes",
    [{"kind": kind} for kind in KINDS]
    + [{"kind": "deformable", "iterative_refine": True, "levels": 2, "maps": 1}],
)
def test_gradient_reaches_every_parameter(changes):
    """Of the head whose data it is; of a key's bias it is zero by softmax's nature."""
    net = build_proposer(TINY.model_copy(update=changes))
    seed_module(net, extra=False)  # a fresh box head ends in zeros and hides what is below it
    targets = [
        torch.tensor([[0.1, 0.2, 0.5, 0.9], [0.4, 0.4, 0.6, 0.6]]),
        torch.tensor([[0.0, 0.0, 1.0, 0.5]]),
    ]
    proposer_loss(net(maps()), targets, "coco")["total"].backward()
    for name, parameter in net.named_parameters():
        if "sa1b" in name:
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # DETR's queries start without content, so its first attention among them has nothing to mix.
        idle = name.endswith(
            ("k_proj.bias", "detr_transformer.decoder.layers.0.self_attn.v_proj.weight")
        )
        assert parameter.grad.any() or idle, name


@pytest.mark.parametrize("dtype", ["autocast", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_gives_float32_boxes(kind, dtype):
    net = seed_module(build_proposer(TINY.model_copy(update={"kind": kind})), extra=False).eval()
    with torch.no_grad():
        full = net(maps(1))
        if dtype == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                half = net(maps(1))
        else:
            half = net.to(torch.bfloat16)(maps(1).to(torch.bfloat16))
    for name in ("boxes_cxcywh", "objectness", "logit_coco", "boxes_all_layers_cxcywh"):
        assert half[name].dtype == torch.float32
    dense = (
        "boxes_cxcywh" if kind == "mlp" else "encoder_objectness_logit"
    )  # queries may take other cells
    both = torch.stack([full[dense].flatten(), half[dense].flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.99
    assert half.boxes_cxcywh.isfinite().all()


def test_exports_without_looking_at_data(tiny):
    program = torch.export.export(tiny, (maps(),)).module()
    with torch.no_grad():
        torch.testing.assert_close(
            program(maps()).boxes_cxcywh, tiny(maps()).boxes_cxcywh, rtol=0, atol=BOXES
        )


def test_too_small_a_map_is_refused(tiny):
    with pytest.raises(ValueError, match=r"20 tokens .* fewer than 32 queries"):
        tiny(maps(1, 4, 5))
    with pytest.raises(ValueError, match=r"\[1, 64, 8, 8\], expected \[1, 256, H, W\]"):
        tiny(torch.zeros(1, 64, 8, 8))


@pytest.mark.parametrize(
    "values",
    [
        {"heads": ("coco",)},
        {"width": 100},
        {"levels": 5},
        {"kind": "detr", "levels": 2},
        {"kind": "mlp", "iterative_refine": True},
    ],
)
def test_configs_that_fit_no_network_are_refused(values):
    with pytest.raises(ValidationError):
        ProposerConfig(**values)


# --- Table 11 -----------------------------------------------------------------------------------------------------

SELECTOR = 197_376


@pytest.mark.parametrize(
    ("kind", "parameters", "table", "with_selector"),
    [
        ("deformable", 11_181_225, 11.38, True),
        ("detr", 12_134_185, 12.33, True),
        ("fcos", 1_904_903, 1.90, False),
        ("mlp", 346_118, 0.35, False),
        ("coords", 0, 0.0, False),
    ],
)
def test_sizes_of_table_11(kind, parameters, table, with_selector):
    assert count(on_meta(ProposerConfig(kind=kind))) == parameters
    assert round((parameters + SELECTOR * with_selector) / 1e6, 2) == table


@pytest.mark.parametrize("heads", [("coco", "sa1b"), ("objectness",)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_proposes_on_a_map_that_is_not_square(kind, heads):
    net = build_proposer(TINY.model_copy(update={"kind": kind, "heads": heads})).eval()
    with torch.no_grad():
        output = net([maps(2, 12, 22), maps()])
    assert isinstance(output, ProposerOutput)
    for frame, found in enumerate(propose(output, keep=20)):
        assert (
            len(found.boxes_xyxy)
            == len(found.objectness)
            == len(found.embeddings)
            == (1 if kind == "mlp" else 20)
        )
        assert found.embeddings.shape[1] == 256
        assert (found.boxes_xyxy >= 0).all()
        assert (found.boxes_xyxy <= 1).all()
        assert (found.boxes_xyxy[:, 2:] > found.boxes_xyxy[:, :2]).all()
        assert (found.objectness.diff() <= 0).all()
        assert torch.equal(found.objectness, output.objectness[frame, found.indices])
    if heads == ("objectness",):
        assert torch.equal(output.objectness, output.logit_objectness.sigmoid())
        assert "logit_coco" not in output


def test_a_fresh_dense_head_proposes_around_its_cells():
    """Width and height do not swap on a map that is wider than high."""
    net = build_proposer(TINY.model_copy(update={"kind": "fcos", "queries": 66})).eval()
    torch.nn.init.zeros_(net.sides.weight)
    with torch.no_grad():
        boxes = net(maps(1)).encoder_box_logits[0].sigmoid().view(6, 11, 4)
    torch.testing.assert_close(boxes[2, 5], torch.tensor([5.5 / 11, 2.5 / 6, 0.2, 0.2]))
    torch.testing.assert_close(
        boxes[0, 0, 2:], torch.tensor([0.5 / 11 + 0.1, 0.5 / 6 + 0.1])
    )  # cut at the border


# --- proposals ----------------------------------------------------------------------------------------------------


def test_paper_filter_and_suppression():
    boxes = torch.tensor(
        [[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.52], [0.6, 0.6, 0.9, 0.9], [0.0, 0.0, 0.2, 0.2]]
    )
    output = ProposerOutput(
        boxes_cxcywh=box_convert(boxes, "xyxy", "cxcywh")[None],
        objectness=torch.tensor([[0.7, 0.9, 0.5, 0.3]]),
        decoder_last_hidden=torch.eye(4)[None],
    )
    assert propose(output)[0].indices.tolist() == [1, 0, 2, 3]
    assert propose(output, nms=0.8, threshold=0.4)[0].indices.tolist() == [1, 2]
    assert propose(output, keep=1)[0].indices.tolist() == [1]
    assert propose(output, threshold=0.95)[0].indices.tolist() == [1]  # never nothing
    for wrong in ({"keep": 0}, {"nms": 1.5}, {"threshold": -0.1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            propose(output, **wrong)


def test_boxes_survive_being_written():
    boxes = torch.tensor([[0.12, 0.3, 0.55, 0.8], [0.0, 0.5, 1.0, 1.0]])
    assert format_boxes(boxes) == "[0.12,0.30,0.55,0.80;0.00,0.50,1.00,1.00]"
    torch.testing.assert_close(parse_boxes(f"It is {format_boxes(boxes)} here."), boxes)
    assert parse_boxes("no box [SEG], [1,2,3], [0.5,0.5,0.4,0.9], [0.1,0.1,1.4,0.9]").shape == (
        0,
        4,
    )
    with pytest.raises(ValueError, match="fractions"):
        format_boxes(boxes * 100)


def test_coordinates_of_an_answer_are_its_only_proposal():
    net = CoordinatesProposer()
    said, silent = propose(
        net(["It is [0.20,0.30,0.50,0.80]; or [0.0,0.0,0.1,0.1].", "I see none."])
    )
    torch.testing.assert_close(said.boxes_xyxy, torch.tensor([[0.2, 0.3, 0.5, 0.8]]))
    assert said.objectness.item() == pytest.approx(1)
    assert silent.boxes_xyxy.tolist() == [[0, 0, 1, 1]]
    assert silent.objectness.item() == 0
    assert said.embeddings.shape == (1, 256)


def test_sine_code_tells_numbers_apart():
    code = sine_code(torch.tensor([[0.25, 0.75]]), 8)
    assert code.shape == (1, 16)
    torch.testing.assert_close(
        code[0, [0, 1, 8, 9]], torch.tensor([1.0, 0.0, -1.0, 0.0]), rtol=0, atol=1e-6
    )
