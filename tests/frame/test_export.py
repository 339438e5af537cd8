"""Checkpoints as folders, and networks for other programs, which run them without this code."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from astropy import units as u
from conftest import ROOT, command, fresh_python, refusal
from safetensors.torch import load_file, save_file

from orrery import load, names
from orrery.checkpoint import RECORD, read_checkpoint
from orrery.export import export
from orrery.models.base import ExportsNetwork
from orrery.models.gems.density import coordinates, log_jacobian
from orrery.network_files import network_of, schema_of, traced, write_program
from orrery.physics.clusters import lowered_isothermal as limepy
from orrery.physics.clusters.cluster_projection import project
from orrery.pretrained import find

STARS = {"bp_rp": [0.82, 1.5], "abs_g": [4.67, 7.5]}
ROWS = 5  # at once, and 1: not as many as the examples
# relative to the largest value; densities of zephyr are differences of a float32 cdf
TOLERANCE = {"zephyr": 1e-4, "gems": 1e-8, "gc_emulator": 1e-10}
SMALL = ("mass_net", "gems")
LARGE = ("zephyr", "gyro", "scatter_vae", "sed_emulator", "gc_emulator")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    to = tmp_path_factory.mktemp("export") / "star_masses"
    export("mass_net", to, "safetensors")
    return to


# --- the folder -------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=names())
def shipped(request, tmp_path_factory):
    """The folder of a shipped checkpoint; its name is that of the checkpoint."""
    to = tmp_path_factory.mktemp("export") / request.param
    export(request.param, to, "safetensors")
    return to


def test_a_folder_holds_all_of_a_checkpoint(shipped):
    ours, theirs = read_checkpoint(shipped), read_checkpoint(find(shipped.name))
    assert ours.keys() == theirs.keys()
    assert ours[RECORD] == theirs[RECORD]
    state = theirs["state_dict"]
    assert ours["state_dict"].keys() == state.keys()
    for key, values in ours["state_dict"].items():
        assert values.dtype == state[key].dtype
        assert torch.equal(values.nan_to_num(0.5), state[key].nan_to_num(0.5)), key
        assert torch.equal(values.isnan(), state[key].isnan()), key


def test_a_model_of_a_folder_predicts_the_same_bits(folder, galaxies, tmp_path):
    ours, theirs = (load(path).mass(**STARS) for path in (folder, "mass_net"))
    assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)
    export("zephyr", tmp_path / "zephyr", "safetensors")
    ours, theirs = (load(path).predict(galaxies) for path in (tmp_path / "zephyr", "zephyr"))
    assert np.array_equal(ours["pz"], theirs["pz"])
    assert np.array_equal(ours["z_median"], theirs["z_median"])


def test_a_folder_is_a_checkpoint_of_the_command_line(tmp_path):
    done = command("-m", "orrery", "export", "checkpoint=zephyr", f"to={tmp_path}/a/pz")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("pz: README.md, config.json, model.safetensors\n")
    small = ["data.n_test=50", f"hydra.run.dir={tmp_path}/run"]
    done = command(
        "evaluate.py", f"checkpoint={tmp_path}/a/pz", f"output={tmp_path}/pz.csv", *small
    )
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "pz.csv").read_text().splitlines()) == 51
    assert not list(ROOT.glob("export.log")), "no log is left where the command is given"


def test_a_folder_fine_tunes_but_does_not_resume(runs, tmp_path):
    folder = tmp_path / "folder"
    export(runs("zephyr") / "best.ckpt", folder, "safetensors")
    said = refusal(command("train.py", "model=zephyr", f"checkpoint={folder}"))
    assert "a finished model without its training state" in said
    assert f"init_from={folder}" in said
    quick = ["experiment=zephyr_quick", "model.epochs=1", "model.lr=0", "data.n_train=400"]
    run = tmp_path / "run"
    done = command("train.py", *quick, f"init_from={folder}", f"hydra.run.dir={run}")
    assert done.returncode == 0, done.stderr
    ours, theirs = (read_checkpoint(p)["state_dict"] for p in (run / "best.ckpt", folder))
    assert torch.equal(ours["head.weight"], theirs["head.weight"])


def test_the_card_has_the_front_matter_that_hubs_specify(shipped):
    """As modelcard.md of huggingface/hub-docs has it: known keys, names, and finite numbers."""
    start, front, body = (shipped / "README.md").read_text().split("---\n", 2)
    front, record = yaml.safe_load(front), read_checkpoint(shipped)[RECORD]
    assert start == "" and body.startswith(f"\n# {shipped.name}\n")
    assert set(front) == {"library_name", "license", "tags", "model-index"}
    assert (front["license"], front["library_name"]) == ("mit", "orrery")
    papers = re.findall(r"arXiv:(\d{4}\.\d{5})", body)
    assert {"astronomy", f"arxiv:{papers[0]}"} <= set(front["tags"])
    assert len(set(front["tags"])) == len(front["tags"]), "hubs refuse a tag twice"
    (model,) = front["model-index"]
    (result,) = model["results"]
    assert model["name"] == shipped.name and result["task"]["type"] == "other"
    for part in ("task", "dataset"):
        assert set(result[part]) == {"type", "name"}
        assert all(isinstance(text, str) and text for text in result[part].values())
    for metric in result["metrics"]:
        assert set(metric) == {"type", "name", "value"} and metric["type"] == metric["name"]
        assert type(metric["value"]) is float and math.isfinite(metric["value"])
    finite = {k: v for k, v in record["metrics"].items() if math.isfinite(v)}
    assert {m["type"]: m["value"] for m in result["metrics"]} == finite
    assert "## Valid for" in body and "## How to use it" in body


def test_a_shipped_card_is_what_its_checkpoint_says(shipped):
    """Without front matter and use; ``python -m benchmarks.cards`` writes it anew."""
    card = (shipped / "README.md").read_text().split("---\n\n", 1)[1]
    before, use = card.split("## How to use it")
    heading = "## How to reproduce it"
    ours = before + heading + use.split(heading)[1]
    assert find(shipped.name).with_suffix(".md").read_text() == ours


def test_what_cannot_be_exported_is_refused_by_a_sentence(folder, runs, tmp_path):
    def said(*words):
        return refusal(command("-m", "orrery", "export", *words))

    to = f"to={tmp_path}/new"
    assert "near: onnx" in said("checkpoint=zephyr", to, "format=onx")
    assert "exists already" in said("checkpoint=mass_net", f"to={folder}")
    assert "no folder is given" in said("checkpoint=mass_net")
    assert "no checkpoint 'zefyr' (near: zephyr; pretrained models:" in said("checkpoint=zefyr", to)
    unfinished = runs("zephyr") / "last.ckpt"
    assert "of an unfinished run" in said(f"checkpoint={unfinished}", to)
    assert "dust has no network to export" in said("checkpoint=dust", to, "format=onnx")
    done = command("-m", "orrery", "export", "checkpoint=zephyr", to, "fromat=onnx")
    assert done.returncode != 0 and "fromat" in done.stderr
    assert not list(tmp_path.iterdir()), "nothing is left of a refused export"


def test_a_folder_that_is_no_checkpoint_is_said_to_be(runs, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"it has no model\.safetensors, config\.json"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"folder of a run, whose model is .*best\.ckpt"):
        load(runs("zephyr"))
    (tmp_path / "model.onnx").touch()
    with pytest.raises(FileNotFoundError, match="network for other programs"):
        load(tmp_path)


def altered(folder: Path, to: Path, change) -> Path:
    """A copy of a folder whose config has been changed by hand."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    change(config)
    (to / "config.json").write_text(json.dumps(config))
    return to


def test_a_folder_of_a_stranger_names_no_other_class(folder, tmp_path):
    def evil(config):
        model = config["checkpoint"][RECORD]["config"]["model"]
        model.clear()
        model |= {"_target_": "os.system", "command": "touch exploded"}

    with pytest.raises(ValueError, match=r"refused to build 'os\.system'"):
        load(altered(folder, tmp_path / "evil", evil))


def test_a_damaged_folder_is_refused(folder, tmp_path):
    flipped = altered(folder, tmp_path / "flipped", lambda config: None)
    content = bytearray((flipped / "model.safetensors").read_bytes())
    content[-100] ^= 1
    (flipped / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"is not the file that config\.json was written with"):
        load(flipped)
    (flipped / "config.json").write_text((folder / "config.json").read_text()[:1000])
    with pytest.raises(ValueError, match=r"config\.json is truncated or damaged"):
        load(flipped)
    (flipped / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"config\.json is truncated or damaged"):
        load(flipped)
    with pytest.raises(ValueError, match="no 'orrery' record"):
        load(altered(folder, tmp_path / "foreign", lambda config: config.pop("checkpoint")))


def test_weights_that_do_not_fit_are_refused(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    state = load_file(other / "model.safetensors")
    state.pop("mass_table")
    save_file(state, other / "model.safetensors")
    config = json.loads((other / "config.json").read_text())
    digest = subprocess.run(
        ["sha256sum", other / "model.safetensors"], capture_output=True, text=True, check=True
    )
    config["weights_sha256"] = digest.stdout.split()[0]
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="the weights do not fit the model"):
        load(other)


# --- the networks -----------------------------------------------------------------------------

# What an interpreter without this code does: it is given a folder with a network and inputs.
RUN = """
import sys
import numpy as np
sys.modules["orrery"] = None  # to import it is an error
for folder in sys.argv[1:]:
    with np.load(f"{folder}/inputs.npz") as file:
        inputs = {name: file[name] for name in file.files}
    for rows in (5, 1):
        some = {name: values[:rows] for name, values in inputs.items()}
"""
WITH_ONNXRUNTIME = """
        import onnxruntime
        session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
        outputs = session.run(None, some)
"""
WITH_TORCH = """
        import torch
        program = torch.export.load(f"{folder}/model.pt2").module()
        outputs = [v.numpy() for v in program(*(torch.from_numpy(v) for v in some.values()))]
"""
SAVE = """
        np.savez(f"{folder}/outputs_{rows}.npz", *outputs)
"""


RUN_ALL = {"onnx": RUN + WITH_ONNXRUNTIME + SAVE, "torch_export": RUN + WITH_TORCH + SAVE}


def refuse_differences(names: tuple[str, ...], folder: Path) -> None:
    """Write networks of pretrained models, and compare what other programs make of them."""
    wanted = {}
    for name in names:
        exported = load(name).exported()
        program = traced(exported)  # once for both formats: it takes seconds
        inputs = {k: each.example[torch.arange(ROWS) % 3] for k, each in exported.inputs.items()}
        for format in RUN_ALL:
            if format == "onnx" and exported.without_onnx:
                continue
            own = folder / format / name
            own.mkdir(parents=True)
            write_program(program, exported, format, own)
            np.savez(own / "inputs.npz", **inputs)
            wanted[own] = exported, inputs
    for format, script in RUN_ALL.items():
        folders = [str(own) for own in wanted if own.parent.name == format]
        done = fresh_python("-c", script, *folders, cwd=folder)
        assert done.returncode == 0, done.stderr
    for own, (exported, inputs) in wanted.items():
        for rows in (ROWS, 1):
            with torch.no_grad():
                values = exported.module(*(each[:rows] for each in inputs.values()))
            with np.load(own / f"outputs_{rows}.npz") as file:
                found = dict(zip(exported.outputs, file.values(), strict=True))
            for (key, value), want in zip(found.items(), values, strict=True):
                assert value.shape == tuple(want.shape) and len(value) == rows
                largest = float(want.abs().max()) if want.is_floating_point() else 0.0
                np.testing.assert_allclose(
                    value,
                    want.numpy(),
                    rtol=0,
                    atol=TOLERANCE.get(own.name, 1e-5) * largest,
                    err_msg=f"{own.name} as {own.parent.name}, {key}",
                )


def test_other_programs_run_a_network_with_any_number_of_rows(tmp_path):
    refuse_differences(SMALL, tmp_path)


@pytest.mark.slow
def test_other_programs_run_large_networks_with_any_number_of_rows(tmp_path):
    refuse_differences(LARGE, tmp_path)


def test_a_format_that_cannot_hold_a_network_is_refused():
    with pytest.raises(ValueError, match="onnxruntime has no arc cosine; format=torch_export"):
        network_of(load("gc_emulator"), "onnx")


def predicted(name):
    """Outputs of the exported network, and the same by the component's own methods, by name."""
    model = load(name)
    exported = model.exported()
    inputs = {key: each.example for key, each in exported.inputs.items()}
    with torch.no_grad():
        ours = dict(zip(exported.outputs, exported.module(*inputs.values()), strict=True))
        match name:
            case "zephyr":
                rows = model.predict_step(inputs)
            case "mass_net":
                stars = {"bp_rp": "bp_rp", "abs_g": "abs_g", "bp_rp_error": "e_bp_rp",
                         "abs_g_error": "e_abs_g"}  # fmt: skip
                rows = model.mass(**{stars[k]: v.double().numpy() for k, v in inputs.items()})
            case "gyro":
                errors = {"colour_error": 0.01, "log_period_error": 0.001}
                batch = inputs | {k: torch.full((3,), v) for k, v in errors.items()}
                log_p = model.table.log_likelihood(batch, model.field_scatter)
                rows = {"log_likelihood": model.with_contamination(log_p, batch)}
            case "gems":
                y = coordinates(inputs["J"])
                rows = {"log_p": model.hosts_table().log_p(y) + log_jacobian(y)[:, None]}
            case "sed_emulator":
                rows = model.magnitudes({k: v.numpy() for k, v in inputs.items()})
            case "scatter_vae":  # z is refined from the encoder's, so that it fits the star better
                rows = {"reconstruction": model.predict_step(inputs)["reconstruction"]}
            case "gc_emulator":
                W0, g, mass, rh, R = inputs.values()
                exact = limepy.solve(W0, g, steps=1600)
                r0 = rh / exact.rh
                density = project(exact, (R / r0)[:, None]).surface_density[:, 0]
                rows = {"surface_density": density * mass / r0**2, "rt": exact.rt * r0}
    return ours, {key: torch.as_tensor(rows[key]) for key in ours if key in rows}


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("zephyr", 1e-4),
        ("mass_net", 1e-6),
        ("gyro", 1e-4),  # places in a table, in float32
        ("gems", 1e-12),
        ("sed_emulator", 1e-6),
        ("scatter_vae", 0.01),
        ("gc_emulator", 1e-6),
    ],
)
def test_the_network_is_what_the_component_predicts_by(name, tolerance):
    ours, theirs = predicted(name)
    assert theirs
    for key, want in theirs.items():
        assert float((ours[key] - want).abs().max()) <= tolerance * float(want.abs().max()), key


def test_the_schema_names_inputs_and_outputs_with_units(tmp_path):
    export("mass_net", tmp_path / "network", "torch_export")
    assert sorted(path.name for path in (tmp_path / "network").iterdir()) == [
        "model.pt2", "schema.json"
    ]  # fmt: skip
    schema = json.loads((tmp_path / "network/schema.json").read_text())
    first = schema["inputs"][0]
    assert (first["name"], first["unit"], first["shape"]) == ("bp_rp", "mag", ["rows"])
    assert first["low"] < 0.8 < first["high"]
    assert [output["name"] for output in schema["outputs"]] == ["mass", "lnm_std", "extrapolated"]
    assert schema["outputs"][0]["unit"] == "Msun"


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"onnxscript.*pip install 'orrery\[export\]'"):
        export("mass_net", tmp_path / "network", "onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [n for n in names() if isinstance(load(n), ExportsNetwork)])
def test_units_axes_and_ranges_of_every_network_are_complete(name):
    exported = load(name).exported()
    schema = schema_of(exported)
    for each in (*schema["inputs"], *schema["outputs"]):
        u.Unit(each["unit"])
        assert len(each["axes"]) == len(each["shape"]), each["name"]
        for axis, size in zip(each["axes"][1:], each["shape"][1:], strict=True):
            assert len(schema["axes"][axis]) == size, f"{each['name']}: {axis}"
    for key, each in exported.inputs.items():
        assert len(each.example) == 3
        assert each.low is None or bool((each.example >= each.low).all()), key
        assert each.high is None or bool((each.example <= each.high).all()), key
