"""The catalog, and what the parent learns through a child: plug-ins found, broken ones isolated, source hashes."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from convbench import catalog, probe, registry
from convbench.errors import WorkerFailed
from tests.plugins.activate import BAD, HERE, add_distribution, site_path, site_with

NETWORK = "ic8ih12oc8oh12kh3ph1"


def run_python(code, env, *arguments):
    """Runs `code` in a new interpreter; its standard output as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


LOAD = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
from convbench import catalog
steps = []
skip = json.loads(sys.argv[2])
first = catalog.load(skip, steps.append)
second = catalog.load(progress=steps.append)
print(json.dumps({
    "names": list(first.implementations), "again": list(second.implementations), "steps": steps,
    "same": all(second.implementations[n] is i for n, i in first.implementations.items()),
    "broken": {b.name: [b.origin, b.reason] for b in first.broken},
    "origins": {n: [o.plugin, o.distribution, o.version] for n, o in first.origins.items()},
}))
"""


def load_in_child(env, skip=()):
    skip = skip if isinstance(skip, dict) else list(skip)
    return run_python(LOAD, env, json.dumps([p for p in sys.path if p]), json.dumps(skip))


def row(document, name):
    return next(r for r in document["implementations"] if r["name"] == name)


def reasons(document):
    return {b["name"]: b["reason"] for b in document["broken"]}


class TestLoad:
    def test_finds_built_in_and_plug_in_once(self, tmp_path):
        found = load_in_child(site_with(tmp_path, "example"))
        assert "example_taps_numpy" in found["names"]
        assert found["origins"]["example_taps_numpy"] == ["example", "convbench-example-plugin", "0.1"]
        assert found["steps"][-1] == "plug-in example"
        assert len(found["steps"]) == len(set(found["steps"]))  # the second load announced and imported nothing
        assert found["same"] and found["again"] == found["names"]

    def test_no_built_in_module_is_broken(self):
        found = load_in_child({})
        assert found["broken"] == {}
        assert {o[1] for o in found["origins"].values()} <= {"convbench"}

    def test_exception_on_import_takes_back_what_was_registered(self, tmp_path):
        found = load_in_child(site_with(tmp_path, "raise_import", "sysexit_import", "example", "nan"))
        origin, reason = found["broken"]["bad_raise_import"]
        assert origin == "bad-raise-import"
        assert reason == (
            "plug-in bad_raise_import raised on import: RuntimeError: this plug-in needs a newer moon"
        )
        assert "SystemExit: no licence found" in found["broken"]["bad_sysexit_import"][1]
        assert "bad_raise_import_numpy" not in found["names"]
        assert {"example_taps_numpy", "bad_nan_numpy"} <= set(found["names"])

    def test_collision_is_broken_and_the_first_stays(self, tmp_path):
        env = {**site_with(tmp_path, "nan", "collision"), "CONVBENCH_BAD_NAME": "bad_nan_numpy"}
        found = load_in_child(env)  # bad_collision comes before bad_nan in the alphabet
        assert "registered twice" in found["broken"]["bad_nan"][1]
        assert found["origins"]["bad_nan_numpy"][0] == "bad_collision"
        assert "bad_first_numpy" in found["names"]

    def test_collision_with_a_built_in(self, tmp_path):
        built_in = load_in_child({})["names"]
        if not built_in:
            pytest.fail("no built-in algorithm is registered")
        env = {**site_with(tmp_path, "collision"), "CONVBENCH_BAD_NAME": built_in[0]}
        found = load_in_child(env)
        assert "registered twice" in found["broken"]["bad_collision"][1]
        assert found["origins"][built_in[0]][1] == "convbench"
        assert "bad_first_numpy" not in found["names"]

    def test_skipped_ones_keep_the_callers_reason(self, tmp_path):
        env = site_with(tmp_path, "segfault_import", "nan")
        found = load_in_child(env, {"bad_segfault_import": "it crashed yesterday"})
        assert found["broken"] == {"bad_segfault_import": ["bad-segfault-import", "it crashed yesterday"]}
        assert "plug-in bad_segfault_import" not in found["steps"]
        assert "bad_nan_numpy" in found["names"]
        assert load_in_child(env, ["bad_segfault_import"])["broken"]["bad_segfault_import"][1]

    def test_a_plug_in_that_registers_nothing_or_is_not_there(self, tmp_path):
        site = tmp_path / "site"
        add_distribution(site, "empty", {"empty": "colorsys", "gone": "no_such_module_anywhere"})
        found = load_in_child(site_path(site))
        assert "registered nothing" in found["broken"]["empty"][1]
        assert "ModuleNotFoundError" in found["broken"]["gone"][1]

    def test_two_plug_ins_of_one_name_are_told_apart(self, tmp_path):
        site = tmp_path / "site"
        add_distribution(site, "one", {"twin": "bad_nan"})
        add_distribution(site, "two", {"twin": "bad_raise_import"})
        found = load_in_child(site_path(site, HERE / "bad"))
        assert list(found["broken"]) == ["twin (two: bad_raise_import)"]
        assert found["origins"]["bad_nan_numpy"][0] == "twin (one: bad_nan)"


class TestSourceSha:
    PIECES = {
        "__init__": "",
        "algorithm": (
            "from convbench.registry import Implementation\nfrom .shared import TABLE\nimport json\n"
            "class A(Implementation):\n    def prepare(self, *a):\n        from shapack import lazy\n"
        ),
        "shared": "from shapack.deeper import D\nTABLE = (1, 2)\n",
        "deeper": "D = 3\n",
        "lazy": "L = 4\n",
        "stranger": "S = 5\n",
    }

    def write(self, folder, **changed):
        package = folder / "shapack"
        package.mkdir(parents=True)
        for name, text in {**self.PIECES, **changed}.items():
            (package / f"{name}.py").write_text(text)
        return folder

    def sha(self, folder, monkeypatch):
        for name in [m for m in sys.modules if m.split(".")[0] == "shapack"]:
            monkeypatch.delitem(sys.modules, name)
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(folder))
            import shapack.algorithm as module

            value = catalog.source_sha(module.A())
            assert "shapack.lazy" not in sys.modules  # nothing is imported to be hashed
        for name in [m for m in sys.modules if m.split(".")[0] == "shapack"]:
            monkeypatch.delitem(sys.modules, name)
        return value

    @pytest.mark.parametrize("piece", ["algorithm", "shared", "deeper", "lazy"])
    def test_changes_with_every_module_it_uses(self, tmp_path, monkeypatch, piece):
        before = self.sha(self.write(tmp_path / "a"), monkeypatch)
        changed = {piece: self.PIECES[piece] + "# changed\n"}
        after = self.sha(self.write(tmp_path / "b", **changed), monkeypatch)
        assert len(before) == 12 and int(before, 16) >= 0
        assert before != after

    def test_does_not_change_with_what_it_does_not_use_nor_with_the_place(self, tmp_path, monkeypatch):
        before = self.sha(self.write(tmp_path / "a"), monkeypatch)
        after = self.sha(self.write(tmp_path / "b", stranger="S = 6\n"), monkeypatch)
        assert before == after

    def test_class_without_a_source_file(self):
        module = types.ModuleType("no_source_module")

        def make(constant):
            code = f"class A(Implementation):\n    def limits(self, problem): return self.f{constant}\n"
            space = {"Implementation": registry.Implementation, "__name__": module.__name__}
            exec(code, space)
            return catalog.source_sha(space["A"]())

        assert make(1) == make(1) != make(2)


class TestProbe:
    @pytest.fixture
    def visible(self, tmp_path, monkeypatch):
        """Makes plug-ins visible to children of this process."""

        def show(*names):
            for key, value in site_with(tmp_path, *names).items():
                monkeypatch.setenv(key, value)

        return show

    def test_document(self, visible):
        visible("example", "chatter")
        document = probe.probe()
        example = row(document, "example_taps_numpy")
        assert example["passes"] == ["fwd", "bwd_data", "bwd_weights"]
        assert example["family"] == "example" and example["device"] == "cpu"
        assert example["plugin"] == "example" and example["distribution"] == "convbench-example-plugin"
        assert example["summary"] == "Adds up R S products of shifted inputs; no padding is ever stored."
        assert example["unavailable"] is None and len(example["source_sha"]) == 12
        assert row(document, "bad_chatter_numpy")["semantics"] == "linear"
        assert document["broken"] == [] and document["skip"] == {} and document["mute"] == {}
        assert "problems" not in document

    def test_each_crash_and_hang_on_import_costs_itself_alone(self, visible):
        visible("segfault_import", "hang_import", "exit_import", "raise_import", "example", "nan")
        document = probe.probe(hang_s=4)
        why = reasons(document)
        assert why["bad_segfault_import"] == "plug-in bad_segfault_import crashed on import: SIGSEGV"
        assert why["bad_hang_import"] == "plug-in bad_hang_import hung on import for 4 s"
        assert why["bad_exit_import"] == "plug-in bad_exit_import ended the process on import with exit code 3"
        assert "RuntimeError" in why["bad_raise_import"]
        assert len(why) == 4
        assert set(document["skip"]) == {"bad_segfault_import", "bad_hang_import", "bad_exit_import"}
        assert {"example_taps_numpy", "bad_nan_numpy"} <= {r["name"] for r in document["implementations"]}

    def test_problems(self, visible):
        visible("example", "limits")
        document = probe.probe(problems=[NETWORK, "--dir=BWD_W ic8ih12oc8oh12kh3ph1", "nonsense"])
        first, second, third = document["problems"]
        answer = first["rows"]["example_taps_numpy"]
        assert answer["why_not"] == {"raw": None, "packed": None}
        assert answer["workspace_estimate"]["raw"] == 2 * 8 * 12 * 12 * 4
        assert answer["executed_flops"] == {"multiply": first["valid_flops"]}
        assert first["direct_flops"] == 2 * 2 * 8 * 12 * 12 * 8 * 9 > first["valid_flops"]
        assert first["min_bytes"] == 4 * (2 * 2 * 8 * 12 * 12 + 8 * 8 * 9)
        assert first["auto"]["raw"]["name"] and first["auto"]["raw"]["reason"]
        assert "no weights to pack" in second["rows"]["example_taps_numpy"]["why_not"]["packed"]
        assert second["auto"]["packed"]["name"] is None
        assert "ZeroDivisionError: limits went wrong" in first["rows"]["bad_limits_numpy"]["why_not"]["raw"]
        assert "nonsense" in third["error"]

    def test_a_crash_in_limits_costs_that_row_alone(self, visible, monkeypatch):
        visible("example", "limits")
        monkeypatch.setenv("CONVBENCH_BAD_LIMITS", "segfault")
        document = probe.probe(problems=[NETWORK])
        assert reasons(document) == {
            "bad_limits_numpy": "bad_limits_numpy crashed when it was asked about itself: SIGSEGV"
        }
        assert list(document["mute"]) == ["bad_limits_numpy"]
        assert document["problems"][0]["rows"]["example_taps_numpy"]["why_not"]["raw"] is None

    def test_caller_skips(self, visible):
        visible("segfault_import")
        document = probe.probe(skip={"bad_segfault_import": "not today"})
        assert reasons(document) == {"bad_segfault_import": "not today"}

    def test_nobody_to_blame(self, monkeypatch):
        monkeypatch.setattr(probe, "child_command", lambda *a: [sys.executable, "-c", "raise SystemExit('why')"])
        with pytest.raises(WorkerFailed, match=r"(?s)exit code 1.*convbench\.describe.*why"):
            probe.probe()

    def test_memory_is_capped(self, tmp_path, monkeypatch):
        site = tmp_path / "site"
        add_distribution(site, "greedy", {"greedy": "greedy_plugin"})
        (site / "greedy_plugin.py").write_text("kept = bytearray(1 << 40)\n")
        for key, value in site_path(site).items():
            monkeypatch.setenv(key, value)
        assert "MemoryError" in reasons(probe.probe())["greedy"]

    def test_what_a_hanging_plug_in_started_is_killed_too(self, tmp_path, monkeypatch):
        site, note = tmp_path / "site", tmp_path / "pid"
        add_distribution(site, "forker", {"forker": "forker_plugin"})
        (site / "forker_plugin.py").write_text(
            "import subprocess, sys, time\n"
            "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
            f"open({str(note)!r}, 'w').write(str(child.pid))\n"
            "time.sleep(600)\n"
        )
        for key, value in site_path(site).items():
            monkeypatch.setenv(key, value)
        assert "hung on import" in reasons(probe.probe(hang_s=3))["forker"]
        status = Path(f"/proc/{int(note.read_text())}/status")
        assert not status.exists() or "zombie" in status.read_text()


def test_every_bad_plug_in_is_known():
    wanted = {
        "segfault_import", "segfault_prepare", "segfault_run", "segfault_timing", "hang_run", "hang_import",
        "nan", "hog", "raise_import", "raise_run", "raise_prepare",
    }  # fmt: skip
    assert wanted <= set(BAD)
