"""Columns that are declared: bad values are refused or unknown, never numbers, for any component.

`DATA` are all configs of data with columns; those of a new component are covered by their YAML.
"""

import copy
import warnings

import numpy as np
import pytest
import torch
from astropy.table import Table
from conftest import COMPONENTS
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from orrery import command_line
from orrery.checkpoint import build
from orrery.datamodules.base import CatalogueData
from orrery.datamodules.columns import Column, columns_table
from orrery.datamodules.dataset import Dataset
from orrery.datamodules.values import LARGEST

BAD = {
    "nan": np.nan, "inf": np.inf, "minus inf": -np.inf, "-999": -999.0, "-99": -99.0, "99": 99.0,
    "-1": -1.0, "huge": 1e35,
}  # fmt: skip
OTHER_TYPES = {
    "complex": lambda n: np.full(n, 1 + 2j),
    "bool": lambda n: np.ones(n, bool),
    "bool with blanks": lambda n: np.ma.array(np.ones(n, bool), mask=np.arange(n) % 3 == 1),
    "objects": lambda n: np.array([None, *[True] * (n - 1)], object),
    "dates": lambda n: np.full(n, np.datetime64("2026-01-01")),
    "text": lambda n: np.full(n, "x☆"),
}
SMALL = {  # of the embedded simulations: tens of rows
    "abundances": ("data.n_train=60", "data.n_test=40", "data.least_measured=5"),
    "chemical_evolution": ("data.n_stars=40",),
    "abundance_structures": ("data.n_train=60", "data.n_test=40", "data.least_measured=5"),
    "dust": ("data.n_stars=300", "model.n_radial=12"),
    "gc_emulator": ("data.n_W0=4", "data.n_g=3", "data.batch_size=12", "data.n_test=12"),
    "gc_stars": ("data.n_stars=30",),
    "gc_sky": ("data.n_stars=30", "data.mock_rv_error=1.0"),
    "feniks": (
        "data.n_train=60", "data.n_test=40",
        "data.bands={g: hsc_g, J: ukirt_wfcam_J, K: ukirt_wfcam_K, Kb: tophat:19350:21850}",
    ),
    "feniks_spectra": (
        "data.n_train=60", "data.n_test=40", "data.mock_pixels=[19500,23800,80]",
        "data.bands={g: hsc_g, J: ukirt_wfcam_J, K: ukirt_wfcam_K, Kb: tophat:19350:21850}",
    ),
    "gems": (
        "data.clusters=[NGC 104,NGC 5139,Pal 5]", "data.n_per_cluster=20", "data.n_field=60",
        "data.n_test_per_cluster=4", "data.field_ratio=2", "data.duration=0.1",
    ),
    "gyro": ("data.n_clusters=4", "data.n_train=60", "data.n_test=40"),
    "mass_net": ("data.n_train=60", "data.n_test=40"),
    "scatter_vae": ("data.n_train=40", "data.n_test=20"),
    "sed_emulator": ("data.n_train=60", "data.n_test=40"),
    "zephyr": ("data.n_train=60", "data.n_test=40"),
}  # fmt: skip


def module(name: str) -> Dataset:
    model = next((c for c in COMPONENTS if c == name), "gc_emulator")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(command_line.CONFIGS), version_base="1.3"):
        words = [f"model={model}", f"data={name}", "run_dir=.", *SMALL.get(name, ())]
        config = OmegaConf.to_container(compose("train", words), resolve=True)
    return build(config["data"])


MODULES = {
    name: data
    for name in command_line.choices("data")
    if isinstance(data := module(name), CatalogueData) and data.declared
}
READY: dict[str, tuple[CatalogueData, dict[bool, Table]]] = {}


def ready(name: str) -> tuple[CatalogueData, dict[bool, Table]]:
    """A data module, ready to predict, and its simulation's tables of prediction and training."""
    if name not in READY:
        data = MODULES[name]
        tables = {training: Table(dict(data.simulate("fit" if training else "test")))
                  for training in (False, True)}  # fmt: skip
        if data.inferred_settings():  # which is known after training data are read
            data.val_fraction = data.val_fraction or 0.5
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                data.setup("fit")
        READY[name] = data, {training: table[:12] for training, table in tables.items()}
    return READY[name]


def batches(data: CatalogueData, table: Table, training: bool) -> list[dict[str, torch.Tensor]]:
    """Two or three batches of a table, with neither a split nor a selection."""
    data = copy.copy(data)
    data.table, data.split, data.predict_batch_size = table, "all", max(1, len(table) // 2)
    if not training:
        return list(data.prediction_batches())
    with data.open("fit") as catalogue:
        roles = data.columns_of(catalogue, training)
        parts = data._read(catalogue, roles, 0, len(catalogue), None)
        return [data._batch(row, cells, roles, training) for row, cells in parts]


def read_columns(name: str, training: bool) -> dict[str, tuple[str, Column]]:
    """Role -> its name in the simulation's table and its declaration."""
    data, tables = ready(name)
    data = copy.copy(data)
    data.table = tables[training]
    with data.open("fit") as catalogue:
        return {r: (c.name, c.column) for r, c in data.columns_of(catalogue, training).items()}


def tried_columns(name: str, training: bool) -> list[tuple[str, Column]]:
    """As `read_columns`; of a family, such as magnitudes by band, three."""
    by_declaration: dict[int, list[tuple[str, Column]]] = {}
    for column, declared in read_columns(name, training).values():
        by_declaration.setdefault(id(declared), []).append((column, declared))
    return [f[i] for f in by_declaration.values() for i in sorted({0, len(f) // 2, len(f) - 1})]


def check(found: list[dict[str, torch.Tensor]], n: int) -> None:
    """No number that a sentinel may be: neither infinite nor huge."""
    assert found
    for name in found[0]:
        values = torch.cat([batch[name] for batch in found]).double()
        assert len(values) == n
        assert not values.isinf().any() and not (values.abs() > 100 * LARGEST).any()


def with_unit(table: Table, name: str, unit: str) -> Table:
    table = table.copy()
    table[name].unit = unit
    return table


CASES = [(name, training) for name in MODULES for training in (False, True)]
pytestmark = [pytest.mark.filterwarnings("ignore")]


def test_every_component_declares_its_columns():
    assert set(COMPONENTS) <= set(MODULES)


@pytest.mark.parametrize(("name", "training"), CASES)
@pytest.mark.parametrize("bad", BAD)
def test_impossible_values_are_refused_or_unknown(name, training, bad):
    """By column and row, in training and prediction; what is possible is possible."""
    data, tables = ready(name)
    for column, declared in tried_columns(name, training):
        if declared.kind not in ("number", "vector"):
            continue
        table = tables[training].copy()
        table[column] = np.array(table[column], float)
        table[column][7] = BAD[bad]
        possible = declared.special or declared.possible(np.array([BAD[bad]])).all()
        blank = declared.blank_only and not np.isnan(BAD[bad])
        refused = blank or declared.replacement(training) is None
        if not possible and refused:
            with pytest.raises(ValueError, match=rf"'{column}'.*row 7\b"):
                batches(data, table, training)
            continue
        try:
            found = batches(data, table, training)
        except ValueError as error:
            assert f"'{column}'" in str(error), "what physics forbids names the column too"
        else:
            check(found, len(table))


@pytest.mark.parametrize(("name", "training"), CASES)
@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_what_is_no_number_is_refused(name, training, kind):
    data, tables = ready(name)
    for column, declared in tried_columns(name, training):
        if declared.kind in ("number", "vector"):
            table = tables[training].copy()
            table[column] = OTHER_TYPES[kind](len(table))
            with pytest.raises(ValueError, match=f"'{column}'"):
                batches(data, table, training)


@pytest.mark.parametrize(("name", "training"), CASES)
def test_text_is_one_per_row(name, training):
    data, tables = ready(name)
    for column, declared in read_columns(name, training).values():
        if declared.kind == "text":
            table = tables[training].copy()
            table[column] = np.zeros((len(table), 2), bool)
            with pytest.raises(ValueError, match=f"'{column}'.*shape"):
                batches(data, table, training)


def test_true_and_false_with_blanks_in_files_are_no_numbers(tmp_path):
    data, tables = ready("gyro")
    table, frame = tables[False].copy(), tables[False].to_pandas()
    table["prot_d"] = OTHER_TYPES["bool with blanks"](len(table))
    frame["prot_d"] = OTHER_TYPES["objects"](len(frame))
    table.write(tmp_path / "a.ecsv")
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_csv(tmp_path / "a.csv", index=False)
    for name in ("a.ecsv", "a.parquet", "a.csv"):
        here = copy.copy(data)
        here.path, here.table, here._opened, here.split = str(tmp_path / name), None, None, "all"
        with pytest.raises(ValueError, match="'prot_d' holds what is no number: true or false"):
            list(here.prediction_batches())


@pytest.mark.parametrize(("name", "training"), CASES)
def test_a_unit_that_does_not_convert_is_refused(name, training):
    data, tables = ready(name)
    for column, declared in read_columns(name, training).values():
        if declared.unit is not None:
            with pytest.raises(ValueError, match=rf"'{column}' is in 'K'"):
                batches(data, with_unit(tables[training], column, "K"), training)


@pytest.mark.parametrize("name", MODULES)
def test_a_column_that_is_named_is_there_or_refused(name):
    """A truth that prediction can do without is said to be missing."""
    data, tables = ready(name)
    for role, declared in data.declared.items():
        if "{" in role:
            continue
        named = copy.copy(data)
        named.columns = {**data.columns, role: "nope"}
        for training in (True, False) if not declared.truth else (True,):
            if declared.need(training) != "unused":
                with pytest.raises(ValueError, match="no column 'nope'"):
                    batches(named, tables[training], training)


class ColourMass(CatalogueData):
    """A toy: colours and mass-to-light ratios of galaxies."""

    declared = {  # noqa: RUF012
        "colour": Column("g_r", "mag", "colour g - r", low=-1, high=3),
        "log_ml": Column("log_ml", "dex", "log10 of M/L", low=-5, high=5, truth=True),
        "log_ml_error": Column(
            "e_log_ml", None, "its error", low=0, ends="()", truth=True,
            unit_of="log_ml", required_with="log_ml",
        ),
    }  # fmt: skip

    def simulate(self, split):
        random = np.random.default_rng(split == "test")
        colour = random.uniform(0, 1, 40)
        log_ml = 1.5 * colour - 0.7 + random.normal(0, 0.1, 40)
        return {"g_r": colour, "log_ml": log_ml, "e_log_ml": np.full(40, 0.1)}


def galaxies() -> Table:
    return Table(ColourMass().simulate("fit"))


def test_a_data_module_is_a_declaration_and_a_simulation():
    data = ColourMass()
    data.setup("fit")
    batch = data.training_batch()
    assert {"colour", "log_ml", "log_ml_error", "row"} == set(batch)
    assert batch["colour"].dtype == torch.float32
    (batch,) = data.prediction_batches()
    np.testing.assert_allclose(batch["colour"], data.simulate("test")["g_r"], rtol=1e-6)


def test_the_row_is_that_of_the_catalogue_not_of_the_chunk():
    table = galaxies()
    table["g_r"][33] = -999
    with pytest.raises(ValueError, match=r"the table: column 'g_r': -999.0 is not a valid colour "
                       r"g - r \(row 33, counted from 0\); expected mag, -1 to 3"):  # fmt: skip
        batches(ColourMass(), table, False)
    data = ColourMass(skip_bad=True)
    with pytest.warns(UserWarning, match="1 rows are left out"):
        assert sum(len(batch["row"]) for batch in batches(data, table, False)) == 39


def test_sentinels_are_unknown_where_a_column_may_be():
    table = galaxies()
    table["log_ml"][:3] = np.float32(-99.9)
    data = ColourMass(sentinels=[-99.9])
    found = batches(data, table, False)[0]["log_ml"]
    assert found.isnan().nonzero().flatten().tolist() == [0, 1, 2]
    table["g_r"][1:4] = -99.9
    with pytest.raises(ValueError, match=r"'g_r': -99.9 is unknown, by data\.sentinels, .*row 1"):
        batches(data, table, False)
    with pytest.raises(ValueError, match=r"'g_r': -99.9.*drop those rows or correct them$"):
        batches(ColourMass(), table, False)
    with pytest.raises(ValueError, match=r"data\.sentinels=\['x'\]: expected numbers"):
        ColourMass(sentinels="x")


def test_a_truth_without_its_error_is_refused():
    table = galaxies()
    del table["e_log_ml"]
    for training in (True, False):
        with pytest.raises(ValueError, match=r"'log_ml' needs its companion.*'e_log_ml'"):
            batches(ColourMass(), table, training)
    del table["log_ml"]
    assert "log_ml" not in batches(ColourMass(), table, False)[0]


def test_an_unknown_truth_is_nan_in_prediction_and_refused_in_training():
    table = galaxies()
    table["log_ml"][3], table["e_log_ml"][4] = -99, -1
    found = batches(ColourMass(), table, False)[0]
    assert found["log_ml"].isnan().nonzero().tolist() == [[3]]
    assert found["log_ml_error"].isnan().nonzero().tolist() == [[4]]
    with pytest.raises(ValueError, match=r"'log_ml'.*row 3"):
        batches(ColourMass(), table, True)


def test_an_error_has_the_unit_of_what_it_is_the_error_of():
    table = galaxies()
    table["g_r"].unit = "mmag"
    table["g_r"] *= 1000
    found = torch.cat([b["colour"] for b in batches(ColourMass(), table, True)])
    np.testing.assert_allclose(found, galaxies()["g_r"], rtol=1e-6)


def test_near_names_are_proposed():
    with pytest.raises(ValueError, match=r"no column 'g_rr'; near matches: g_r"):
        batches(ColourMass(columns={"colour": "g_rr"}), galaxies(), False)


def test_the_table_of_columns_is_made_from_the_declaration():
    text = columns_table(ColourMass)
    assert "| `colour` | `g_r` | mag | -1 to 3 | always | colour g - r |" in text
    assert "| `log_ml_error` | `e_log_ml` | dex | above 0 |" in text
    for data in MODULES.values():
        assert len(columns_table(type(data)).splitlines()) == len(data.declared) + 2


def test_cuts_are_counted_and_recorded(tmp_path, capsys):
    table = galaxies()
    table["flag"] = np.arange(40) % 4
    path = str(tmp_path / "galaxies.fits")
    table.write(path)
    cuts = {"flag": "flag == 0 or flag == 1", "red": "flag==9|g_r > 0.5"}
    data = ColourMass(path=path, cuts=cuts, train_where="log_ml > 0")
    data.setup("fit")
    left = np.flatnonzero((table["flag"] < 2) & (table["g_r"] > 0.5) & (table["log_ml"] > 0))
    assert sum(len(rows["row"]) for rows in data.rows.values()) == len(left)
    said = capsys.readouterr().out
    assert "data.cuts.flag, 'flag == 0 or flag == 1', removes 20 of 40 rows" in said
    assert sum(data.provenance()["cuts"].values()) == 40 - len(left)
    with pytest.raises(ValueError, match=r"cuts.red: no column 'G_R'.*near matches: g_r"):
        ColourMass(path=path, cuts={"red": "G_R > 1"}).setup("fit")
    for red in ("(g_r > 1 or flag == 1) and log_ml > 0", "log_ml > 0 and (g_r > 1)"):
        with pytest.raises(ValueError, match=r"data.cuts.red: '.*' has parentheses, which are not"):
            ColourMass(path=path, cuts={"red": red}).setup("fit")
    with pytest.raises(ValueError, match=r"data.cuts.red: 'g_r' is not '<column> <comparison>"):
        ColourMass(path=path, cuts={"red": "g_r"}).setup("fit")


def test_a_file_is_opened_and_hashed_once_until_it_changes(tmp_path, monkeypatch):
    from orrery.datamodules import base

    path = tmp_path / "galaxies.fits"
    galaxies().write(path)
    calls = []
    for name in ("open_catalogue", "sha256"):
        real = getattr(base, name)
        monkeypatch.setattr(
            base, name, lambda *a, real=real, name=name: calls.append(name) or real(*a)
        )
    data = ColourMass(path=str(path), keep=["g_r"])
    data.provenance()
    data.n_predicted(), data.keep_units()
    list(data.prediction_batches()), next(data.prediction_batches())
    record = data.provenance()
    assert sorted(calls) == ["open_catalogue", "sha256"]
    galaxies()[:30].write(path, overwrite=True)
    assert data.provenance()["sha256"] != record["sha256"] and data.provenance()["rows"] == 30
    assert sorted(calls) == ["open_catalogue"] * 2 + ["sha256"] * 2


# --- random tables ------------------------------------------------------------------------------


@st.composite
def changes(draw, columns: dict[str, Column]):
    """Some rows of a good table, and what is done to some of its columns."""
    rows = draw(st.lists(st.integers(0, 11), max_size=6))
    spoilt = {}
    for name in draw(st.lists(st.sampled_from(sorted(columns)), max_size=2, unique=True)):
        how = draw(st.sampled_from(["cells", "masked", "type", "gone", "unit", "float32", "shape"]))
        cell = st.floats(width=64) | st.sampled_from(list(BAD.values()))
        limits = [v for v in (columns[name].low, columns[name].high) if np.isfinite(v)]
        cell = cell | st.sampled_from(limits) if limits else cell
        spoilt[name] = (
            how,
            draw(st.lists(cell, min_size=6, max_size=6)),
            draw(st.sampled_from(sorted(OTHER_TYPES))),
        )
    ids = draw(st.lists(st.text(max_size=4), min_size=6, max_size=6))
    return rows, spoilt, ids


def spoil(table: Table, spoilt: dict[str, tuple[str, list[float], str]]) -> Table:
    n = len(table)
    for name, (how, cells, kind) in spoilt.items():
        values = np.array(table[name])
        if how == "cells" and values.dtype.kind == "f":
            values = values.astype(float)
            values.T[..., :] = np.array(cells[:n])
        elif how == "float32" and values.dtype.kind == "f":
            values = values.astype(np.float32)
        elif how == "type":
            values = OTHER_TYPES[kind](n)
        elif how == "shape":
            values = np.ones((n, 2, 2))
        if how == "gone":
            del table[name]
            continue
        mask = [c > 0 for c in cells[:n]] if how == "masked" else None
        if mask and values.ndim == 1:
            values = np.ma.array(values, mask=mask)
        table[name] = values
        if how == "unit":
            table[name].unit = "K"
    return table


@pytest.mark.parametrize("name", MODULES)
def test_any_table_ends_in_a_batch_or_in_an_error_that_names_the_column(name):
    data, tables = ready(name)
    data = copy.copy(data)
    data.keep = ["☆ id"]
    columns = {t: dict(read_columns(name, t).values()) for t in (False, True)}

    @settings(
        max_examples=200, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data(), st.booleans())
    def run(draws, training):
        rows, spoilt, ids = draws.draw(changes(columns[training]))
        table = tables[training][rows]
        table["☆ id"] = np.array(ids[: len(table)], dtype="U8")
        table = spoil(table, spoilt)
        try:
            found = batches(data, table, training)
        except ValueError as error:
            named = any(column in str(error) for column in spoilt)
            assert named or (not rows and "no rows" in str(error)), str(error)
        else:
            assert rows or training
            if rows:
                check(found, len(rows))

    run()
