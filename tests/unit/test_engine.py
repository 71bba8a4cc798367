"""The public library: right results, clear errors, the rules of choice, the cache of plans."""

import importlib
import sys
import threading
import tracemalloc
import types

import numpy as np
import pytest
import threadpoolctl

import convbench
from convbench import catalog, choices, engine, foresight, registry
from convbench.devices.cpu import CpuContext, aligned_empty
from convbench.errors import ProblemError, Unavailable, UnknownAlgorithm, Unsupported, UsageError
from convbench.problem import ConvShape, Pass, Problem, Semantics
from convbench.registry import Implementation, bind_weights
from tests.plugins.activate import HERE

RNG = np.random.default_rng(7)


def taps(shape, layout):
    """(n, k, c, p, q, r, s, h, w) of every product in a convolution that reads the image: the definition."""
    for k in range(shape.k):
        for c in range(shape.cg):
            for p, q, r, s in np.ndindex(shape.p, shape.q, shape.r, shape.s):
                h = p * shape.stride[0] + r * shape.dilation[0] - shape.padding[0]
                w = q * shape.stride[1] + s * shape.dilation[1] - shape.padding[2]
                if 0 <= h < shape.h and 0 <= w < shape.w:
                    yield k, c, k // shape.kg * shape.cg + c, p, q, r, s, h, w


def by_definition(problem, a, b):
    """The convolution in the problem's own dtype, one product at a time (over the batch at once)."""
    s = problem.shape
    chw = (lambda t: t) if problem.layout == "nchw" else (lambda t: t.transpose(0, 3, 1, 2))
    out = np.zeros(problem.out_shape, a.dtype)
    a_, b_, o_ = chw(a), chw(b), chw(out)
    for k, c, channel, p, q, r, t, h, w in taps(s, problem.layout):
        if problem.pass_ is Pass.FORWARD:
            o_[:, k, p, q] += a_[:, channel, h, w] * b_[k, c, r, t]
        elif problem.pass_ is Pass.BACKWARD_DATA:
            o_[:, channel, h, w] += a_[:, k, p, q] * b_[k, c, r, t]
        else:
            o_[k, c, r, t] += a_[:, channel, h, w] @ b_[:, k, p, q]
    return out


class Toy(Implementation):
    """Computes by definition; the classes below differ in name and limits."""

    prepared = 0
    workspace = 1000

    def workspace_estimate(self, problem):
        return self.workspace

    def prepare(self, problem, context, weights=None):
        type(self).prepared += 1
        context.empty(self.workspace, np.uint8)
        type(self).threads = context.threads

        def run(a, b, out):
            for array in (a, out) if weights is not None else (a, b, out):
                assert array.flags.c_contiguous and array.dtype.isnative and array.ctypes.data % 64 == 0
            assert not np.may_share_memory(a, b)
            out[...] = by_definition(problem, a, b)

        return bind_weights(run, weights, context)


@pytest.fixture(autouse=True)
def no_predictions(monkeypatch):
    """Choices by the written rules: what is predicted is the matter of test_costmodel.py."""
    known = foresight.Knowledge(None, None, "nothing is predicted in this test")
    monkeypatch.setattr(foresight, "current", lambda: known)


@pytest.fixture
def toys():
    """Registers toy implementations; takes them away again, and the plans that used them."""
    catalog.load()
    before = registry.implementations()

    def add(name, **attributes):
        attributes.setdefault("prepared", 0)
        row = type(name, (Toy,), {"name": name, **attributes})
        registry.register(row)
        return row

    yield add
    for name in set(registry.implementations()) - set(before):
        registry.unregister(name)
    engine.clear_cache()


@pytest.fixture
def toy(toys):
    return toys("toy_plain_numpy")


SHAPES = {
    "plain": ConvShape.make(2, 3, 6, 5, 4, 3, 3),
    "rich": ConvShape.make(2, 4, 9, 8, 6, 3, 2, (2, 3), ((2, 1), (0, 3)), (2, 1), 2),
}


def arguments(shape):
    top, bottom, left, right = shape.padding
    return {
        "stride": shape.stride, "padding": ((top, bottom), (left, right)), "dilation": shape.dilation,
        "groups": shape.groups,
    }  # fmt: skip


def operands(shape, layout, dtype="float32"):
    """Small whole numbers, so that results are exact in any order of summation."""
    sizes = shape.x_shape(layout), shape.w_shape(layout), shape.y_shape(layout)
    return [RNG.integers(-4, 5, size).astype(dtype) for size in sizes]


class TestResults:
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("layout", ["nchw", "nhwc"])
    @pytest.mark.parametrize("name", SHAPES)
    def test_three_passes_and_the_plan(self, toy, name, layout, dtype):
        shape = SHAPES[name]
        x, w, dy = operands(shape, layout, dtype)
        rest = {**arguments(shape), "layout": layout, "algorithm": "toy_plain_numpy"}
        made = {
            Pass.FORWARD: (convbench.conv2d(x, w, **rest), x, w),
            Pass.BACKWARD_DATA: (convbench.conv2d_backward_data(dy, w, x.shape, **rest), dy, w),
            Pass.BACKWARD_WEIGHTS: (convbench.conv2d_backward_weights(x, dy, (shape.r, shape.s), **rest), x, dy),
        }
        for pass_, (got, a, b) in made.items():
            want = by_definition(Problem(shape, pass_, dtype, layout), a, b)
            assert got.dtype == want.dtype and np.array_equal(got, want)
        packed = convbench.plan(x.shape, w, **rest)
        assert np.array_equal(packed(x), made[Pass.FORWARD][0])

    def test_short_forms_of_the_arguments(self, toy):
        x, w, _ = operands(SHAPES["plain"], "nchw")
        long = convbench.conv2d(x, w, stride=(2, 2), padding=((1, 1), (1, 1)), algorithm="toy_plain_numpy")
        assert np.array_equal(long, convbench.conv2d(x, w, stride=2, padding=1, algorithm="toy_plain_numpy"))
        assert np.array_equal(long, convbench.conv2d(x, w, stride=2, padding=(1, 1), algorithm="toy"))
        dy = np.ones((2, 4, 4, 3), "f4")
        assert convbench.conv2d_backward_weights(x, dy, 3, algorithm="toy").shape == (4, 3, 3, 3)
        assert convbench.conv2d_backward_weights(x, dy, (3, 3), algorithm="toy").shape == (4, 3, 3, 3)

    def test_arrays_of_any_memory_layout(self, toy):
        x, w, _ = operands(SHAPES["plain"], "nchw")
        want = convbench.conv2d(x, w, algorithm="toy")
        raw = bytearray(x.nbytes + 4)
        shifted = np.frombuffer(raw, "f4", x.size, 4 if np.frombuffer(raw, "u1").ctypes.data % 64 == 0 else 0)
        shifted = shifted.reshape(x.shape)
        shifted[...] = x
        wide = np.zeros((*x.shape[:3], 2 * x.shape[3]), "f4")
        wide[..., ::2] = x
        frozen = x.copy()
        frozen.setflags(write=False)
        for form in (shifted, wide[..., ::2], np.asfortranarray(x), x.astype(">f4"), frozen):
            got = convbench.conv2d(form, w, algorithm="toy")
            assert np.array_equal(got, want) and got.dtype.isnative
        assert np.array_equal(convbench.conv2d(x, w.astype(">f4"), algorithm="toy"), want)
        assert np.array_equal(convbench.plan(x.shape, np.asfortranarray(w), algorithm="toy")(wide[..., ::2]), want)

    def test_one_array_for_both_operands(self, toy):
        square = RNG.integers(-4, 5, (3, 3, 4, 4)).astype("f4")
        want = convbench.conv2d(square, square.copy(), algorithm="toy")
        assert np.array_equal(convbench.conv2d(square, square, algorithm="toy"), want)

    def test_out(self, toy):
        x, w, _ = operands(SHAPES["plain"], "nchw")
        want = convbench.conv2d(x, w, algorithm="toy")
        raw = np.empty(want.size + 16, "f4")
        for start in range(16):  # every alignment a float can have
            out = raw[start : start + want.size].reshape(want.shape)
            out.fill(np.nan)
            assert convbench.conv2d(x, w, algorithm="toy", out=out) is out
            assert np.array_equal(out, want)
        packed = convbench.plan(x.shape, w, algorithm="toy")
        assert packed(x, out=out) is out and packed(x, out) is out

    def test_plan_keeps_its_own_weights(self, toy):
        x, w, _ = operands(SHAPES["plain"], "nchw")
        want = convbench.conv2d(x, w, algorithm="toy")
        packed = convbench.plan(x.shape, w, algorithm="toy")
        w.fill(0)
        assert np.array_equal(packed(x), want)
        assert packed.algorithm == "toy_plain_numpy" and packed.setup_ns > 0
        assert packed.workspace_bytes >= Toy.workspace
        assert "toy_plain_numpy" in repr(packed)

    def test_built_in_algorithm_end_to_end(self):
        x, w, _ = operands(SHAPES["rich"], "nchw")
        rest = arguments(SHAPES["rich"])
        got = convbench.conv2d(x, w, algorithm="im2col_numpy", **rest)
        assert np.array_equal(got, by_definition(Problem(SHAPES["rich"]), x, w))


X, W = np.zeros((2, 4, 8, 8), "f4"), np.zeros((6, 4, 3, 3), "f4")


class TestErrors:
    @pytest.mark.parametrize(
        ("call", "words"),
        [
            (lambda: convbench.conv2d([[1]], W), "x must be a NumPy array, not list"),
            (lambda: convbench.conv2d(X, None), "w must be a NumPy array, not NoneType"),
            (lambda: convbench.conv2d(np.ma.masked_array(X), W), "x must be a NumPy array, not MaskedArray"),
            (lambda: convbench.conv2d(X[0], W), "x must have 4 axes, not 3"),
            (lambda: convbench.conv2d(X.astype("i4"), W), "x: dtype must be one of float64.*not int32"),
            (lambda: convbench.conv2d(X, W.astype("f8")), "w: dtype must be float32, as that of x, not float64"),
            (lambda: convbench.conv2d(X, W[:, :3]), r"w: .* 3 channels per group.*\(6, 4, 3, 3\)"),
            (lambda: convbench.conv2d(X, W, groups=2), "w: .*groups=2 need 2"),
            (lambda: convbench.conv2d(X, W, groups=4), "k=6 is not a multiple of groups=4"),
            (lambda: convbench.conv2d(X, W, stride=0), "stride must be >= 1"),
            (lambda: convbench.conv2d(X, W, stride="2"), "stride must be an int or"),
            (lambda: convbench.conv2d(X, W, padding=-1), "padding must be >= 0"),
            (lambda: convbench.conv2d(X, W, dilation=9), "there is no output"),
            (lambda: convbench.conv2d(X, W, layout="chwn"), "layout must be nchw or nhwc, not 'chwn'"),
            (lambda: convbench.conv2d(X, W, semantics="fuzzy"), "semantics must be one of"),
            (lambda: convbench.conv2d(X[:0], W), "x: every size must be >= 1"),
            (lambda: convbench.conv2d(X, W, out=[1]), "out must be a NumPy array, not list"),
            (lambda: convbench.conv2d(X, W, out=np.empty((1, 2, 3, 4), "f4")), r"out: shape must be \(2, 6, 6, 6\)"),
            (lambda: convbench.conv2d(X, W, out=np.empty((2, 6, 6, 6))), "out: dtype must be float32"),
            (lambda: convbench.conv2d(X, W, out=np.empty((2, 6, 6, 12), "f4")[..., ::2]), "out must be C-contiguous"),
            (lambda: convbench.conv2d_backward_data(X, W, (2, 4, 8)), "input_shape must be four numbers"),
            (lambda: convbench.conv2d_backward_data(X, W, (2, 4, 8, 8.5)), "input_shape must be four whole numbers"),
            (lambda: convbench.conv2d_backward_data(X, W, (2, 4, 8, 8)), r"dy: shape must be \(2, 6, 6, 6\)"),
            (lambda: convbench.conv2d_backward_weights(X, X, (3, 3)), r"dy: shape must be \(2, 4, 6, 6\)"),
            (lambda: convbench.conv2d_backward_weights(X, X, (3, 3, 3)), "kernel_size must be"),
            (lambda: convbench.plan((2, 4, 8), W), "x_shape must be four numbers"),
            (lambda: convbench.plan(X.shape, W.tolist()), "w must be a NumPy array, not list"),
        ],
    )
    def test_names_the_argument_and_what_was_expected(self, toy, call, words):
        with pytest.raises(ProblemError, match=words):
            call()

    def test_out_must_be_writeable_and_apart(self, toy):
        x = np.zeros((1, 2, 5, 5), "f4")
        w = np.zeros((2, 2, 1, 1), "f4")
        frozen = np.zeros((1, 2, 5, 5), "f4")
        frozen.setflags(write=False)
        with pytest.raises(ProblemError, match="out must be writeable"):
            convbench.conv2d(x, w, out=frozen, algorithm="toy")
        with pytest.raises(ProblemError, match="out must not share memory with x"):
            convbench.conv2d(x, w, out=x, algorithm="toy")
        with pytest.raises(ProblemError, match="out must not share memory with x"):
            convbench.conv2d(x[:, ::-1], w, out=x, algorithm="toy")
        with pytest.raises(ProblemError, match="out must not share memory with x"):
            convbench.plan(x.shape, w, algorithm="toy")(x, x)

    def test_plan_is_for_one_shape_and_dtype(self, toy):
        packed = convbench.plan(X.shape, W, algorithm="toy")
        with pytest.raises(ProblemError, match=r"x: shape must be \(2, 4, 8, 8\), the plan was made for"):
            packed(X[:1])
        with pytest.raises(ProblemError, match="x: dtype must be float32, as the plan was made for, not float64"):
            packed(X.astype("f8"))

    def test_what_an_implementation_raises_comes_out_and_is_not_kept(self, toys):
        def broken(self, problem, context, weights=None):
            type(self).prepared += 1

            def run(a, b, out):
                raise ZeroDivisionError("inside")

            return run

        row = toys("toy_broken_numpy", prepare=broken)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError, match="inside"):
                convbench.conv2d(X, W, algorithm="toy_broken_numpy")
        assert row.prepared == 2


class TestChoice:
    def only(self, *rows):
        return {row.name: row() for row in rows}

    def row(self, name, **attributes):
        return type(name, (Toy,), {"name": name, **attributes})

    def problem(self, filter_size=3, channels=16, **rest):
        return Problem(ConvShape.make(1, channels, 20, 20, channels, filter_size, filter_size, **rest))

    def test_unknown_name_suggests_the_nearest(self, toy):
        with pytest.raises(UnknownAlgorithm, match="'toy_plane_numpy': did you mean toy_plain_numpy"):
            convbench.conv2d(X, W, algorithm="toy_plane_numpy")
        with pytest.raises(UnknownAlgorithm, match=r"'zzzz': known: .*auto.*toy"):
            convbench.conv2d(X, W, algorithm="zzzz")

    def test_a_name_that_refuses_is_an_error_with_its_sentence(self, toys, toy):
        toys("toy_picky_numpy", limits=lambda self, p: "toy_picky: the moon must be full, not new")
        with pytest.raises(Unsupported, match="the moon must be full, not new"):
            convbench.conv2d(X, W, algorithm="toy_picky_numpy")
        toys("toy_absent_numpy", requires=("no_such_module",))
        with pytest.raises(Unavailable, match=r"toy_absent_numpy needs no_such_module: pip install"):
            convbench.conv2d(X, W, algorithm="toy_absent_numpy")
        toys("toy_gpu_cuda", device="cuda")
        with pytest.raises(Unsupported, match="toy_gpu_cuda runs on cuda"):
            convbench.conv2d(X, W, algorithm="toy_gpu_cuda")
        assert convbench.plan(X.shape, W, algorithm="toy").algorithm == "toy_plain_numpy"

    def test_family_takes_tier_then_operations_then_the_short_name(self, toys):
        def flops(n):
            return lambda self, problem: {"all": float(n)}

        toys("toy_a_numba", executed_flops=flops(1))
        toys("toy_b_numpy", executed_flops=flops(9))
        assert convbench.plan(X.shape, W, algorithm="toy").algorithm == "toy_b_numpy"
        toys("toy_c_numpy", executed_flops=flops(5))
        assert convbench.plan(X.shape, W, algorithm="toy").algorithm == "toy_c_numpy"
        toys("toy_numpy", executed_flops=flops(5))
        assert convbench.plan(X.shape, W, algorithm="toy").algorithm == "toy_numpy"
        toys("toy_d_simd", executed_flops=flops(99))
        assert convbench.plan(X.shape, W, algorithm="toy").algorithm == "toy_d_simd"

    def test_family_without_a_member_for_the_problem(self, toys):
        toys("toy_a_numpy", limits=lambda self, p: "toy_a: no")
        toys("toy_b_numpy", limits=lambda self, p: "toy_b: never")
        with pytest.raises(Unsupported, match="toy_a: no; toy_b: never"):
            convbench.conv2d(X, W, algorithm="toy")

    def test_binary_needs_to_be_said(self, toys, toy):
        toys("bits_toy_numpy", semantics=Semantics.BINARY, passes=(Pass.FORWARD,), dtypes=("float32",))
        for name in ("bits_toy_numpy", "bits"):
            with pytest.raises(UsageError, match=r'computes the binary convolution.*say semantics="binary"'):
                convbench.conv2d(X, W, algorithm=name)
            assert convbench.conv2d(X, W, algorithm=name, semantics="binary").shape == (2, 6, 6, 6)
        with pytest.raises(UsageError, match="toy_plain_numpy computes the linear convolution, not the binary"):
            convbench.conv2d(X, W, algorithm="toy_plain_numpy", semantics="binary")

    def test_auto_follows_its_rule(self):
        fft, vendor = self.row("fft_tiled_pyfftw"), self.row("onednn", vendor=True)
        im2col, other = self.row("im2col_numpy"), self.row("toy_x_numpy")
        rows = self.only(fft, vendor, im2col, other)
        names = {
            self.problem(3): "onednn",
            self.problem(9, padding=4): "fft_tiled_pyfftw",
            self.problem(9, stride=2): "onednn",
            self.problem(9, channels=4): "onednn",
            self.problem(9, groups=16): "onednn",
        }
        for problem, name in names.items():
            choice = convbench.choose(problem, rows=rows)
            assert choice.name == name and choice.reason
        picky = self.row("onednn", vendor=True, limits=lambda self, p: "onednn: not this one")
        choice = convbench.choose(self.problem(), rows=self.only(picky, im2col))
        assert choice == convbench.Choice("im2col_numpy", "onednn: not this one; im2col takes every shape")
        assert convbench.choose(self.problem(), rows=self.only(other)).name == "toy_x_numpy"
        choice = convbench.choose(self.problem(9), rows=self.only(im2col))
        assert "fft_tiled_pyfftw is not registered; onednn is not registered" in choice.reason

    def test_products_of_signs_in_tiles_of_bytes_go_before_counted_bits(self):
        signs = {"semantics": Semantics.BINARY, "passes": (Pass.FORWARD,), "dtypes": ("float32",)}
        rows = [
            self.row(name, **signs, arithmetic=multiplies)
            for name, multiplies in (("bits_count_simd", "binary"), ("bits_tiles_simd", "int8-acc32"))
        ]
        wanted = Problem(self.problem().shape, semantics=Semantics.BINARY)
        assert choices.choose(wanted, rows=self.only(*rows)).name == "bits_tiles_simd"

    @pytest.mark.parametrize(
        ("size", "channels", "wanted"),
        [(14, 32, "winograd_f4_fp16_simd"), (7, 32, "direct_fp16_simd"), (14, 3, "direct_fp16_simd")],
    )
    def test_float16_is_ours_and_by_winograd_where_its_tiles_are_full(self, size, channels, wanted):
        names = ("onednn_fp16", "direct_fp16_simd", "winograd_f4_fp16_simd", "im2col_half_numpy")
        rows = self.only(*(self.row(name, dtypes=("float16",)) for name in names))
        problem = Problem(ConvShape.make(1, channels, size, size, 32, 3, 3, padding=1), dtype="float16")
        assert choices.choose(problem, rows=rows).name == wanted

    def test_auto_for_binary_never_takes_a_linear_one_and_the_reverse(self):
        linear, binary = self.row("im2col_numpy"), self.row("bits_toy_numpy", semantics=Semantics.BINARY)
        problem = self.problem()
        wanted = Problem(problem.shape, semantics=Semantics.BINARY)
        assert choices.choose(wanted, rows=self.only(linear, binary)).name == "bits_toy_numpy"
        assert choices.choose(problem, rows=self.only(linear, binary)).name == "im2col_numpy"
        with pytest.raises(Unsupported, match="no registered implementation takes this linear fwd problem"):
            choices.choose(problem, rows=self.only(binary))

    def test_auto_goes_on_when_a_library_refuses_at_prepare_and_a_name_does_not(self, toys, monkeypatch):
        def refuse(self, problem, context, weights=None):
            raise Unsupported("onednn: only a reference kernel (ref:any)")

        rows = self.only(self.row("onednn", vendor=True, prepare=refuse), self.row("im2col_numpy"))
        monkeypatch.setattr(catalog, "load", lambda: types.SimpleNamespace(implementations=rows))
        packed = convbench.plan(X.shape, W)
        assert packed.algorithm == "im2col_numpy" and "only a reference kernel" in packed.reason
        with pytest.raises(Unsupported, match="only a reference kernel"):
            convbench.plan(X.shape, W, algorithm="onednn")

    def test_algorithms_lists_objects_with_names(self, toy):
        names = [row.name for row in convbench.algorithms()]
        assert "toy_plain_numpy" in names and names == sorted(names)
        assert convbench.algorithms is sys.modules["convbench.algorithms"]  # a package that can be called


class TestCache:
    def test_a_plan_is_prepared_once_per_problem_and_thread_count(self, toy):
        for _ in range(3):
            convbench.conv2d(X, W, algorithm="toy")
        assert toy.prepared == 1
        convbench.conv2d(X, W, padding=1, algorithm="toy")
        assert toy.prepared == 2
        convbench.clear_cache()
        convbench.conv2d(X, W, algorithm="toy")
        assert toy.prepared == 3

    def test_the_least_recently_used_goes_first(self, toy, monkeypatch):
        monkeypatch.setattr(Toy, "workspace", 1000)
        x, w = aligned_empty(X.shape, "f4"), aligned_empty(W.shape, "f4")
        x.fill(0), w.fill(0)
        monkeypatch.setattr(engine, "CACHE_BYTES", 2500)
        for padding in (0, 1, 0, 2, 0):  # 1 was used the longest ago when 2 came
            convbench.conv2d(x, w, padding=padding, algorithm="toy")
        assert toy.prepared == 3
        convbench.conv2d(x, w, padding=1, algorithm="toy")
        assert toy.prepared == 4
        assert sum(s.n_bytes for s in engine._cache.plans.values()) <= 2500

    def test_a_plan_beyond_the_cap_is_not_kept(self, toy, monkeypatch):
        monkeypatch.setattr(engine, "CACHE_BYTES", 10)
        convbench.conv2d(X, W, algorithm="toy")
        assert not engine._cache.plans

    def test_a_name_registered_anew_is_not_served_by_the_old_plan(self, toys):
        toys("toy_plain_numpy")
        convbench.conv2d(X, W, algorithm="toy_plain_numpy")
        registry.unregister("toy_plain_numpy")
        with pytest.raises(UnknownAlgorithm):
            convbench.conv2d(X, W, algorithm="toy_plain_numpy")
        second = toys("toy_plain_numpy")
        convbench.conv2d(X, W, algorithm="toy_plain_numpy")
        assert second.prepared == 1

    def test_threads_never_share_a_plan(self, toys):
        """Each plan notices when two calls are inside it at once; a barrier makes them meet."""
        barrier = threading.Barrier(4, timeout=30)

        def prepare(self, problem, context, weights=None):
            busy = threading.Lock()

            def run(a, b, out):
                assert busy.acquire(blocking=False), "one plan was run by two threads at once"
                barrier.wait()  # all four are inside their run() now
                out[...] = by_definition(problem, a, b)
                busy.release()

            return run

        toys("toy_shared_numpy", prepare=prepare)
        x, w, _ = operands(SHAPES["plain"], "nchw")
        want = by_definition(Problem(SHAPES["plain"]), x, w)
        results, failures = [], []

        def work(factor):
            try:
                for _ in range(3):
                    got = convbench.conv2d(x * factor, w, algorithm="toy_shared_numpy")
                    results.append(np.array_equal(got, want * factor))
            except BaseException as error:  # noqa: BLE001 - reported by the assertion below
                failures.append(error)
                barrier.abort()

        threads = [threading.Thread(target=work, args=(np.float32(f),)) for f in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures and results == [True] * 12

    def test_calls_of_one_plan_from_several_threads_take_turns(self, toys):
        def prepare(self, problem, context, weights=None):
            busy = threading.Lock()
            pause = threading.Event()

            def run(a, out):
                assert busy.acquire(blocking=False), "two calls at once"
                pause.wait(0.01)
                out[...] = by_definition(problem, a, weights)
                busy.release()

            return run

        toys("toy_shared_numpy", prepare=prepare)
        x, w, _ = operands(SHAPES["plain"], "nchw")
        packed = convbench.plan(x.shape, w, algorithm="toy_shared_numpy")
        want = by_definition(Problem(SHAPES["plain"]), x, w)
        results = []
        threads = [threading.Thread(target=lambda: results.append(packed(x))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 4 and all(np.array_equal(r, want) for r in results)

    def test_thread_count_follows_threadpoolctl(self, toy):
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            convbench.conv2d(X, W, algorithm="toy")
        assert toy.threads == 1
        assert 1 <= engine._threads() <= engine.allowed_cores()


class TestPlugInPackages:
    """What tests/plugins holds is used by other tests as known to be right, or right but for one fault."""

    @pytest.fixture
    def load(self, toys, monkeypatch):
        def load(folder, module):
            monkeypatch.syspath_prepend(str(HERE / folder))
            monkeypatch.delitem(sys.modules, module, raising=False)
            return importlib.import_module(module)

        return load

    @pytest.mark.parametrize("layout", ["nchw", "nhwc"])
    @pytest.mark.parametrize("shape", [*SHAPES.values(), ConvShape.make(1, 2, 3, 3, 2, 2, 2, 1, 3)])
    def test_example_is_right_and_says_how_much_memory_it_needs(self, load, shape, layout):
        row = load("convbench_example_plugin", "convbench_example_plugin").ExampleTaps()
        x, w, dy = operands(shape, layout)
        for pass_, (a, b) in zip(Pass, [(x, w), (dy, w), (x, dy)], strict=True):
            problem = Problem(shape, pass_, "float32", layout)
            out = np.full(problem.out_shape, np.nan, "f4")
            run = row.prepare(problem, CpuContext())
            tracemalloc.start()
            run(a, b, out)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert np.array_equal(out, by_definition(problem, a, b))
            assert peak <= 1.25 * row.workspace_estimate(problem) + (1 << 20)

    def test_the_correct_part_of_the_bad_ones(self, load):
        module = load("bad", "bad_common")
        problem = Problem(ConvShape.make(2, 4, 9, 8, 6, 3, 2, (2, 3), ((2, 1), (0, 3)), (2, 1)))
        right = type("Right", (module.Right,), {"name": "bad_right_numpy"})()
        x, w, _ = operands(problem.shape, "nchw")
        out = np.full(problem.out_shape, np.nan, "f4")
        right.prepare(problem, CpuContext())(x, w, out)
        assert np.array_equal(out, by_definition(problem, x, w))
        load("bad", "bad_nan")
        with_nan = convbench.conv2d(x, w, algorithm="bad_nan_numpy", **arguments(problem.shape))
        assert np.isnan(with_nan[..., -1, -1]).all()
        with_nan[..., -1, -1] = out[..., -1, -1]
        assert np.array_equal(with_nan, out)
