"""Sessions with variants: they compute base + delta, side by side with others that do not."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import numpy as np
import pytest

from edgerun import Model, OptionError, VariantError
from edgerun.program.tape import Tape
from edgerun.variants.merge import write_merged
from edgerun.variants.store import DenseDelta, open_variant, write_variant
from edgerun_exporters import export
from tests.conftest import checkpoint

from .made import KINDS, matrices, tensors, write

TOKENS = [int(t) for t in np.random.default_rng(0).integers(0, 90, 60)]
Array = np.ndarray


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("source") / "checkpoint")


@pytest.fixture(scope="module")
def exact(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package in float32."""
    folder = tmp_path_factory.mktemp("exact") / "package"
    export(source, folder, quant="f32")
    return folder


@pytest.fixture(scope="module")
def files(package: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Variants a and b."""
    folder = tmp_path_factory.mktemp("variants")
    return {
        name: write(package, folder / f"{name}.safetensors", kind, seed)
        for name, kind, seed in (("a", "dare 0.9", 1), ("b", "magnitude", 2))
    }


def logits(model: Model, variant: str | Path = "none", tokens: list[int] = TOKENS) -> Array:
    """Of all tokens: the first by prefill, the others one by one."""
    session = model.session(variant)
    first = np.concatenate([rows.copy() for rows in session.score(tokens[:40])])
    return np.concatenate([first, np.stack([session.decode(token).copy() for token in tokens[40:]])])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_those_of_the_dense_sum(exact: Path, source: Path, tmp_path: Path, kind: str, bits: int) -> None:
    path = write(exact, tmp_path / "x", kind, bits=bits)
    variant = open_variant(path)
    export(source, tmp_path / "sum", quant="f32", deltas={name: variant.delta(name) for name in variant.names()})
    with Model(exact, threads=2, compute="float32", cache="f32") as model:
        base, got = logits(model), logits(model, path)
    with Model(tmp_path / "sum", threads=2, compute="float32", cache="f32") as model:
        wanted = logits(model)
    assert np.abs(got - wanted).max() <= 2e-5 * np.abs(wanted).max()
    assert np.abs(got - base).max() > 0.01 * np.abs(wanted).max()


@pytest.mark.parametrize("compute", ["mixed", "int16", "int8", "float32"])
def test_it_is_added_to_whatever_form_of_the_base_runs(
    package: Path, exact: Path, files: dict[str, Path], compute: str
) -> None:
    """The package in 8 bits takes variants of the same checkpoint's weights too, with the base's own error."""
    with Model(exact, threads=1, compute="float32", cache="f32") as model:
        wanted = logits(model, files["a"])
    with Model(package, threads=2, compute=compute) as model:  # type: ignore[arg-type]
        got = logits(model, files["a"])
    assert np.abs(got - wanted).max() <= 0.1 * np.abs(wanted).max()


def test_every_number_of_threads_gives_the_same_bits(package: Path, files: dict[str, Path]) -> None:
    found = []
    for threads in (1, 2):
        with Model(package, threads=threads) as model:
            found.append(logits(model, files["a"]))
    np.testing.assert_array_equal(*found)


def test_weights_of_zero_and_none_are_the_base(package: Path, files: dict[str, Path]) -> None:
    with Model(package) as model:
        wanted = logits(model)
        for spec in ("none", f"{files['a']}:0", f"{files['a']}:0+none"):
            np.testing.assert_array_equal(logits(model, spec), wanted)
            assert model.session(spec).tape is model.tape


def test_one_term_alone_is_the_variant(package: Path, files: dict[str, Path]) -> None:
    with Model(package) as model:
        np.testing.assert_array_equal(logits(model, f"{files['a']}:1"), logits(model, files["a"]))


def test_a_sum_at_run_time_is_the_merged_file(package: Path, files: dict[str, Path], tmp_path: Path) -> None:
    spec = f"{files['a']}:0.5+{files['b']}:-0.25"
    write_merged(spec, tmp_path / "sum.safetensors")
    with Model(package, compute="float32", cache="f32") as model:
        wanted, got = logits(model, spec), logits(model, tmp_path / "sum.safetensors")
    assert np.abs(got - wanted).max() <= 0.02 * np.abs(wanted).max()  # its values are rounded to 8 bits again


def test_sessions_with_different_variants_run_side_by_side(package: Path, files: dict[str, Path]) -> None:
    with Model(package, threads=2) as model:
        specs = ["none", str(files["a"]), str(files["b"]), f"{files['a']}:0.5+{files['b']}:0.5"] * 2
        wanted = [logits(model, spec) for spec in specs]
        got: dict[int, list[Array]] = {i: [] for i in range(len(specs))}

        def work(i: int) -> None:
            for _ in range(3):
                got[i].append(logits(model, specs[i]))

        threads = [threading.Thread(target=work, args=(i,)) for i in got]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i, results in got.items():
            assert len(results) == 3
            for result in results:
                np.testing.assert_array_equal(result, wanted[i])


def test_swapping_drops_the_cache_or_keeps_it(package: Path, files: dict[str, Path]) -> None:
    with Model(package) as model:
        session = model.session()
        session.prefill(TOKENS)
        session.use(files["a"])
        assert (session.position, session.variant) == (0, str(files["a"]))
        session.prefill(TOKENS)
        position = session.position
        session.use("none", keep=True)
        assert session.position == position
        session.rewind(5)
        assert session.decode(3).shape == (model.vocab_size,)
        with pytest.raises(VariantError):
            session.use("no such variant")
        assert (session.variant, session.position) == ("none", 6)


def test_rewinding_works_as_without(package: Path, files: dict[str, Path]) -> None:
    with Model(package) as model:
        session, fresh = model.session(files["a"]), model.session(files["a"])
        session.prefill(TOKENS)
        session.rewind(20)
        fresh.prefill(TOKENS[:20])
        np.testing.assert_allclose(session.decode(5), fresh.decode(5), atol=1e-3)


def test_a_model_has_a_default(package: Path, files: dict[str, Path]) -> None:
    with Model(package, variant=files["a"]) as model:
        assert model.session().variant == str(files["a"])
        assert model.session("none").tape is model.tape
    with pytest.raises(VariantError, match="no such variant"):
        Model(package, variant="nonsense")


def test_names_are_looked_up_in_the_library(
    package: Path, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgerun.variants import library

    monkeypatch.setenv("EDGERUN_CACHE", str(tmp_path))
    with Model(package) as model:
        with pytest.raises(VariantError, match=r"tidy: no such variant; there are none in"):
            model.session("tidy")
        place = library.place("tidy")
        place.parent.mkdir()
        place.write_bytes(files["a"].read_bytes())
        assert list(library.listed()) == ["tidy"]
        np.testing.assert_array_equal(logits(model, "tidy"), logits(model, files["a"]))


def test_a_replaced_file_is_opened_again(package: Path, tmp_path: Path) -> None:
    path = write(package, tmp_path / "x", seed=1)
    with Model(package) as model:
        session = model.session(path)
        before = session.prefill(TOKENS).copy()
        write(package, path, seed=2)
        session.rewind(0)
        np.testing.assert_array_equal(session.prefill(TOKENS), before)  # it runs what it had opened
        assert np.abs(model.session(path).prefill(TOKENS) - before).max() > 0
        assert len(model.variants.resident) == 1


def test_a_thousand_swaps_leave_nothing_behind(package: Path, files: dict[str, Path]) -> None:
    def mapped() -> int:
        return sum(".safetensors" in line for line in Path("/proc/self/maps").read_text().splitlines())

    with Model(package, threads=1) as model:
        session = model.session()
        specs = [str(files["a"]), str(files["b"]), f"{files['a']}:0.5+{files['b']}:0.5", "none"]
        counts = []
        for i in range(1000):
            session.use(specs[i % len(specs)])
            if i % 100 == 0:
                session.decode(1)
            if i in (20, 996):
                gc.collect()
                counts.append((mapped(), sum(isinstance(thing, Tape) for thing in gc.get_objects())))
        assert counts[0] == counts[1]
        assert len(model.variants.resident) == 2
        session.use("none")
        model.variants.drop()
        gc.collect()
        assert mapped() == counts[0][0] - 2


def test_a_variant_of_another_base_is_refused(package: Path, tmp_path: Path) -> None:
    path = write(package, tmp_path / "x", base="0" * 64)
    with Model(package) as model, pytest.raises(VariantError, match="a variant of another base") as error:
        model.session(path)
    assert "\n" not in str(error.value)


def test_weights_that_the_model_does_not_have(package: Path, tmp_path: Path) -> None:
    with Model(package) as model:
        known = str(model.package.config.source["fingerprint"])
        name, (n, _) = next(iter(matrices(model.package).items()))
        delta = dict(tensors(model.package, "dare 0.9"))
        for wrong in (
            {"output.weight": delta[name]},  # tied: the embedding's delta serves both
            {"layers.0.attention.q_proj.weight": delta[name]},
            {"final_norm.weight": DenseDelta(np.zeros(100, np.float32))},
            {name: DenseDelta(np.zeros(n, np.float32))},
        ):
            write_variant(tmp_path / "x", wrong.items(), base=known, method="m", parameters={})
            with pytest.raises(VariantError, match=r"it changes .*, but the model has"):
                model.session(tmp_path / "x")


@pytest.mark.parametrize("spec", ["a:", "a:x", ":1", "a:inf", "", "a++b"])
def test_specs_that_make_no_sense(package: Path, spec: str) -> None:
    with Model(package) as model, pytest.raises((OptionError, VariantError)):
        model.session(spec)
