"""Shape files: pinned content, totals known from the papers, the product rule, and what each error says."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from convbench.errors import OutputError, SuiteError
from convbench.resources import folder
from convbench.shapes import load_shapes, sample_layers

SHAPES = folder("suites") / "shapes"

# name: (layers, occurrences, confirmed, hash of what was parsed)
PINNED: dict[str, tuple[int, int, bool, str]] = {
    "alexnet_grouped.yaml": (5, 5, True, "3bfa0d7ca377292e"),
    "alexnet_owt.yaml": (5, 5, True, "b0e520fb48b7dc65"),
    "deepbench_inference_device.yaml": (16, 16, True, "b5dce5ee231533c4"),
    "deepbench_inference_server.yaml": (107, 107, True, "01cf7d3a4fd52753"),
    "deepbench_training.yaml": (94, 94, True, "ec062ce52e8ce50e"),
    "distribution.yaml": (3, 3, True, "5466b6efa0b7248c"),
    "fbfft_l1_l5.yaml": (5, 5, True, "20a5b20169566119"),
    "fbfft_space.yaml": (8232, 8232, False, "9ed5b3b5512615f4"),
    "filter_size.yaml": (7, 7, True, "67fac0e8fa6d0ef8"),
    "googlenet.yaml": (49, 57, True, "629b6f0d1095c0e4"),
    "headline_filters.yaml": (11, 11, False, "934113c8c9e149e3"),
    "lavin_vgg_e.yaml": (9, 16, True, "84e412400672092d"),
    "mobilenet_v1.yaml": (19, 27, True, "2958dc30d6305cde"),
    "overfeat.yaml": (5, 5, True, "1795f7c07d4d46fd"),
    "resnet18.yaml": (11, 20, True, "ad1c4237176dcbd9"),
    "resnet50.yaml": (23, 53, True, "8c440fc0a49aca54"),
    "vgg16.yaml": (9, 13, True, "87adf439fe12bd35"),
    "vgg_a.yaml": (7, 8, True, "cc33017ffd4093f6"),
    "xnor_channels.yaml": (9, 9, True, "45e552e0429b8621"),
    "xnor_filter_size.yaml": (6, 6, True, "7f62dde1a9998b66"),
}


def digest(name: str) -> str:
    layers = [[layer.name, layer.count, dataclasses.asdict(layer.shape)] for layer in load_shapes(SHAPES / name).layers]
    return hashlib.sha256(json.dumps(layers, sort_keys=True).encode()).hexdigest()[:16]


def macs_per_image(name: str) -> int:
    return sum(layer.count * layer.shape.macs // layer.shape.n for layer in load_shapes(SHAPES / name).layers)


def test_every_shape_file_is_pinned() -> None:
    assert {path.name for path in SHAPES.iterdir()} == set(PINNED)


@pytest.mark.parametrize("name", PINNED)
def test_content_is_pinned(name: str) -> None:
    shapes = load_shapes(SHAPES / name)
    found = (len(shapes.layers), sum(layer.count for layer in shapes.layers), shapes.confirmed, digest(name))
    assert found == PINNED[name]
    assert shapes.source


@pytest.mark.parametrize(
    ("name", "macs"),
    [  # published or recomputed counts of convolution multiply-adds for one image
        ("vgg16.yaml", 15_346_630_656),
        ("vgg_a.yaml", 7_485_456_384),
        ("resnet50.yaml", 4_087_136_256),
        ("resnet18.yaml", 1_813_561_344),
        ("googlenet.yaml", 1_581_647_872),
        ("alexnet_owt.yaml", 655_566_528),
        ("alexnet_grouped.yaml", 665_784_864),
        ("overfeat.yaml", 2_671_478_784),
        ("mobilenet_v1.yaml", 567_716_352),
    ],
)
def test_multiply_adds_are_those_of_the_network(name: str, macs: int) -> None:
    assert macs_per_image(name) == macs


def test_lavin_table_3_total_is_39_gflop() -> None:
    assert round(2 * macs_per_image("lavin_vgg_e.yaml") / 1e9, 3) == 39.017


def test_deepbench_repeats_what_its_source_repeats() -> None:
    for name, rows, distinct in (
        ("deepbench_training.yaml", 94, 90),
        ("deepbench_inference_server.yaml", 107, 103),
        ("deepbench_inference_device.yaml", 16, 15),
    ):
        layers = load_shapes(SHAPES / name).layers
        assert (len(layers), len({layer.shape for layer in layers})) == (rows, distinct)


def test_fbfft_space_has_8232_unique_points() -> None:
    shapes = load_shapes(SHAPES / "fbfft_space.yaml")
    assert len({layer.shape for layer in shapes.layers}) == len({layer.name for layer in shapes.layers}) == 8232
    assert not shapes.confirmed and "memory" in shapes.note
    assert {(layer.shape.p, layer.shape.q) for layer in shapes.layers} == {(y, y) for y in (1, 2, 4, 8, 16, 32, 64)}


def test_filter_sizes_cost_the_same_within_five_percent() -> None:
    layers = load_shapes(SHAPES / "filter_size.yaml").layers
    assert [layer.shape.r for layer in layers] == [3, 5, 7, 9, 11, 13, 31]
    assert all(abs(layer.shape.macs / layers[0].shape.macs - 1) <= 0.05 for layer in layers)
    assert {layer.shape.p for layer in layers} == {32}


def test_sample_depends_on_the_seed_only() -> None:
    layers = load_shapes(SHAPES / "fbfft_space.yaml").layers
    first, again, other = (sample_layers(layers, 64, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert len({layer.name for layer in first}) == 64
    positions = [layers.index(layer) for layer in first]
    assert positions == sorted(positions)
    assert set(sample_layers(layers, 10, 0)) <= set(first)  # a smaller sample is part of a larger one


HEAD = "source: a paper\nconfirmed: true\n"
BAD = {
    "unknown key": (HEAD + "layer: []\n", ["line 3: layer:", "unknown key 'layer'", "did you mean 'layers'?"]),
    "unknown key of a layer": (
        HEAD + 'layers:\n  - {name: a, cuont: 2, shape: "ic3ih8oc4kh3"}\n',
        ["line 4: layers[0].cuont", "did you mean 'count'?"],
    ),
    "duplicate key": (HEAD + "source: b\n", ["line 3", "duplicate key 'source'", "first on line 1"]),
    "missing": ("source: a\nlayers: [{name: a, shape: ic3ih8oc4kh3}]\n", ["confirmed", "missing"]),
    "no layers": (HEAD + "layers: []\n", ["line 3: layers", "the list is empty"]),
    "layers a word": (HEAD + "layers: vgg\n", ["line 3: layers", "list, not 'vgg'"]),
    "not true or false": (
        "source: a\nconfirmed: maybe\nlayers: []\n",
        ["line 2: confirmed", "true or false", "'maybe'"],
    ),
    "nothing in it": (HEAD, ["either 'layers' or a 'product'"]),
    "count": (
        HEAD + 'layers:\n  - name: a\n    count: 0\n    shape: "ic3"\n',
        ["line 5: layers[0].count", ">= 1, not 0"],
    ),
    "impossible shape": (
        HEAD + 'layers:\n  - {name: a, shape: "ic3ih8oc4kh3"}\n  - {name: b, shape: "ic3ih5oc4kh7"}\n',
        ["line 5: layers[1].shape", "filter's height 7", "ic3ih5oc4kh7"],
    ),
    "options": (HEAD + 'layers:\n  - {name: a, shape: "--dir=BWD_D ic3ih8oc4kh3"}\n', ["line 4", "shapes only"]),
    "product": (HEAD + "product: {n: [1], c: [1], k: [1], filter: [3]}\n", ["line 3: product.output", "missing"]),
    "product number": (
        HEAD + "product: {n: [1], c: [1, x], k: [1], filter: [3], output: [1]}\n",
        ["line 3: product.c", "whole number >= 1, not 'x'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("content", "parts"), BAD.values(), ids=BAD.keys())
def test_errors_name_file_line_and_key(tmp_path: Path, content: str, parts: list[str]) -> None:
    path = tmp_path / "net.yaml"
    path.write_text(content)
    with pytest.raises(SuiteError) as error:
        load_shapes(path)
    for part in [str(path), *parts]:
        assert part in str(error.value)


def test_missing_file_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"none\.yaml: No such file"):
        load_shapes(tmp_path / "none.yaml")
