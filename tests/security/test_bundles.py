"""Bundles, releases and models of a stranger: they read, write and run nothing but what a bundle is."""

import json
import os
import pickle
import shutil
import string
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from serving import newer_sids
from serving.aliases import POLICY
from serving.model_repository import export, newest, read_release, releases
from serving.packaging import find_bundle, save_pyfunc
from serving.registry import Registry
from tessera import bundle
from tessera.decoding.recommender import Recommender
from tessera.errors import BundleError
from tessera.files import read_json, sha256_file, write_json
from tessera.policy.bundle import load_policy
from tessera.tokenizer.bundle import Tokenizer


def forge(folder: Path, *names: str) -> Path:
    """List what is in the folder, and these names too, in a manifest that fits, as one who makes a bundle may."""
    old = read_json(folder / bundle.MANIFEST)
    paths = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {bundle.MANIFEST}
    files = {name: _sha256(folder, name) for name in sorted({*paths, *names})}
    version = bundle._digest(old["kind"], old["config"], files, old["parent"], old["extra"])
    write_json(folder / bundle.MANIFEST, old | {"files": files, "version": version})
    return folder


def _sha256(folder: Path, name: str) -> str:
    try:
        return sha256_file(folder / name)
    except Exception:
        return "0"


@pytest.fixture
def copy(policy_bundle: Path, tmp_path: Path) -> Path:
    """A policy bundle to be altered."""
    return Path(shutil.copytree(policy_bundle, tmp_path / "home" / "bundles" / "policy"))


def everything_below(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


# --- names ---

_touched: list[str] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _touched is not None and event.split(".")[0] in {"open", "os", "shutil"}:
        _touched.extend(os.path.normpath(one) for one in arguments if isinstance(one, str))


sys.addaudithook(_watch)  # stays for the life of the process, and does nothing but below


@contextmanager
def touched() -> Iterator[list[str]]:
    """The paths that are opened, made, linked or moved meanwhile."""
    global _touched
    _touched = seen = []
    try:
        yield seen
    finally:
        _touched = None


PARTS = ["", ".", "..", "...", "outside", "secret.json", "a", "a.json", ".hidden.json", "~", "C:", "-", "a b.json"]
PARTS += ["..\\outside\\secret.json", "a\\b.json", "a\0.json", "a.json\n", "é.json", "e\u0301.json", "ａ.json"]
PARTS += ["con.py", "..json/.."]
WHOLE = ["../outside/secret.json", "a/../../outside/secret.json", "/etc/hostname", "ABSOLUTE", "", "manifest.json"]
HOSTILE = st.sampled_from(WHOLE) | st.builds(
    lambda start, parts: start + "/".join(parts),
    st.sampled_from(["", "", "/", "//", "../", "../../", "./"]),
    st.lists(st.sampled_from(PARTS) | st.text(max_size=6), min_size=1, max_size=5),
)


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, and beside it what is none of its business."""
    folder = tmp_path_factory.mktemp("arena")
    bundle.save(folder / "bundle", "policy", lambda new: (new / "in.json").touch(), config={}, metrics={}, parent="t")
    (folder / "outside").mkdir()
    (folder / "outside" / "secret.json").write_text("secret")
    return folder


@given(name=HOSTILE)
@settings(max_examples=80, deadline=None)
def test_no_name_in_a_manifest_leads_out_of_the_bundle(arena: Path, name: str) -> None:
    name = str(arena / "outside" / "secret.json") if name == "ABSOLUTE" else name
    forge(arena / "bundle", name)
    before = everything_below(arena)
    with touched() as seen:
        for use in (lambda: bundle.load_manifest(arena / "bundle", "policy"), lambda: read_both_ways(arena)):
            with pytest.raises(BundleError):
                use()
    inside = str(arena / "bundle")
    assert [path for path in seen if path.startswith(f"{arena}/") and not f"{path}/".startswith(f"{inside}/")] == []
    assert "/etc/hostname" not in seen
    assert everything_below(arena) == before


def read_both_ways(arena: Path) -> None:
    with pytest.raises(BundleError):
        bundle.load_manifest(arena / "bundle", "policy", verify=False)
    export(arena / "bundle", arena / "repository")


WORD = st.text(string.ascii_letters + string.digits + "_-.", max_size=8)
GOOD = st.builds(
    lambda parts, suffix: "/".join(first + rest for first, rest in parts) + suffix,
    st.lists(st.tuples(st.sampled_from(string.ascii_letters + string.digits + "_"), WORD), min_size=1, max_size=4),
    st.sampled_from([".json", ".safetensors", ".parquet", ".txt", ".jinja", ".model"]),
).filter(lambda name: name != bundle.MANIFEST)


@given(name=GOOD)
@settings(max_examples=30, deadline=None)
def test_every_good_name_is_saved_loaded_and_released(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.mktemp("good")

    def write(staging: Path) -> None:
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).write_text("data")

    saved = bundle.save(folder / "b", "policy", write, config={}, metrics={}, parent="t")
    assert bundle.load_manifest(folder / "b", "policy") == saved
    release = read_release(export(folder / "b", folder / "repository"))
    assert (release.policy / name).read_text() == "data"
    assert sorted(bundle.load_manifest(release.policy, "policy").files) == [name]
    shutil.rmtree(folder)


def test_a_bundle_plants_no_release(copy: Path, tmp_path: Path) -> None:
    """Triton would have run this model.py at the next start: the highest number serves."""
    repository = tmp_path / "home" / "models"
    planted = copy / "../../2/model.py"
    planted.parent.mkdir()
    planted.write_text("raise SystemExit")
    forge(copy, "../../2/model.py")
    with pytest.raises(BundleError, match=r"lists the file '\.\./\.\./2/model\.py', whose name no bundle has"):
        export(copy, repository)
    assert releases(repository) == []
    assert everything_below(repository) == []


# --- what the manifest does not list ---


def test_an_adapter_that_somebody_adds_changes_no_answer(copy: Path) -> None:
    from peft import LoraConfig, get_peft_model

    policy = load_policy(copy)
    model: Any = policy.backbone.model
    adapted: Any = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(copy / "model")
    with pytest.raises(BundleError, match=r"holds 'model/README.md', which manifest.json does not list; remove it"):
        Recommender.load(copy)
    (copy / "model" / "README.md").unlink()
    with pytest.raises(BundleError, match=r"holds 'model/adapter_config.json', which manifest.json does not list"):
        Recommender.load(copy)


STRANGERS = ["x.json", ".x", ".git/config", "model/generate.py", "model/pytorch_model.bin", "empty/"]


@pytest.mark.parametrize("stranger", STRANGERS)
@pytest.mark.parametrize("verify", [True, False])
def test_files_and_folders_that_are_not_listed_are_refused(stranger: str, verify: bool, copy: Path) -> None:
    bundle.load_manifest(copy, "policy", verify=verify)
    (copy / stranger).parent.mkdir(exist_ok=True)
    (copy / stranger).mkdir() if stranger.endswith("/") else (copy / stranger).touch()
    with pytest.raises(BundleError, match=r"which manifest\.json does not list; remove it"):
        bundle.load_manifest(copy, "policy", verify=verify)


# --- links ---


def test_links_that_leave_the_folder_are_refused(copy: Path, tmp_path: Path) -> None:
    sids, outside = copy / "sids.parquet", tmp_path / "outside"
    sids.rename(outside)
    for target in (outside, Path("../../../outside"), tmp_path / "nothing", Path("sids.parquet")):
        sids.symlink_to(target)
        with pytest.raises(BundleError, match=r"'sids.parquet', which (leads out of it|is neither file nor folder)"):
            bundle.load_manifest(copy, "policy")
        sids.unlink()
    os.mkfifo(sids)  # to read it would wait for ever
    with pytest.raises(BundleError, match="neither file nor folder"):
        bundle.load_manifest(copy, "policy")
    sids.unlink()
    outside.rename(sids)
    (copy / "model").rename(tmp_path / "model")
    (copy / "model").symlink_to(tmp_path / "model")
    with pytest.raises(BundleError, match="holds the link 'model', which leads out of it"):
        bundle.load_manifest(copy, "policy")


def test_a_bundle_is_reached_through_a_link_and_may_have_links_inside(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "store").symlink_to(copy)
    (copy / "sids.parquet").rename(copy / "table.parquet")
    (copy / "sids.parquet").symlink_to("table.parquet")
    forge(copy)
    assert "sids.parquet" in bundle.load_manifest(tmp_path / "store", "policy").files
    release = read_release(export(tmp_path / "store", tmp_path / "repository"))
    assert not (release.policy / "sids.parquet").is_symlink()
    Recommender.load(release.policy)


# --- bundles that a stranger made whole ---


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def _edit(path: Path, **change: Any) -> None:
    write_json(path, (read_json(path) if path.exists() else {}) | change)


def _module(path: Path, marker: Path) -> None:
    path.write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Model: pass\nclass Config: pass\n")


ADAPTER: dict[str, Any] = {"peft_type": "LORA", "target_modules": ["q_proj"]}


def remote_model(model: Path, marker: Path) -> None:
    _module(model / "evil.py", marker)
    classes = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    _edit(model / "config.json", model_type="evil", auto_map=classes)


def remote_model_elsewhere(model: Path, marker: Path) -> None:
    _module(model / "evil.txt", marker)
    where = f"{model}--evil.Config"
    _edit(model / "config.json", model_type="evil", auto_map={"AutoConfig": where})


def remote_tokenizer(model: Path, marker: Path) -> None:
    _module(model / "evil.py", marker)
    classes = {"AutoTokenizer": ["evil.Model", "evil.Model"]}
    _edit(model / "tokenizer_config.json", tokenizer_class="Model", auto_map=classes)


def pickled_weights(model: Path, marker: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(marker)))


def pickled_adapter(model: Path, marker: Path) -> None:
    _edit(model / "adapter_config.json", **ADAPTER, base_model_name_or_path=str(model))
    (model / "adapter_model.bin").write_bytes(pickle.dumps(Payload(marker)))


def adapter_alone(model: Path, marker: Path) -> None:
    _edit(model / "adapter_config.json", **ADAPTER, base_model_name_or_path=str(marker))


def kernels_of_a_hub(model: Path, _marker: Path) -> None:
    _edit(model / "config.json", attn_implementation="somebody/kernel")


def kernels_of_a_part(model: Path, _marker: Path) -> None:
    _edit(model / "config.json", text_config={"_attn_implementation": "somebody/kernel"})


def quantised_weights(model: Path, _marker: Path) -> None:
    _edit(model / "config.json", quantization_config={"quant_method": "mxfp4"})


def weights_of_another_folder(model: Path, marker: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").rename(marker.with_name("weights.safetensors"))
    names = dict.fromkeys(tensors, os.path.relpath(marker.with_name("weights.safetensors"), model))
    _edit(model / "model.safetensors.index.json", metadata={}, weight_map=names)


ATTACKS = [
    remote_model, remote_model_elsewhere, remote_tokenizer, pickled_weights, pickled_adapter, adapter_alone,
    kernels_of_a_hub, kernels_of_a_part, quantised_weights, weights_of_another_folder,
]  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_loading_a_bundle_runs_no_code_and_reads_no_other_folder(
    attack: Callable[[Path, Path], None], copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_: Any) -> str:
        raise AssertionError("transformers asks whether it may run a stranger's code")

    monkeypatch.setattr("builtins.input", ask)
    load_policy(forge(copy))  # whole by its manifest, before and after
    attack(copy / "model", tmp_path / "ran")
    forge(copy)
    with pytest.raises(BundleError, match=r"(do not use this bundle|train again)\.$"):
        load_policy(copy)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "change",
    [{"files": ["a"]}, {"files": {"a.json": 1}}, {"config": []}, {"metrics": 1}, {"extra": "x"}, {"version": None},
     {"parent": 3}, {"kind": ["policy"]}, {"kind": {}}],
)  # fmt: skip
def test_a_manifest_of_wrong_types_is_refused_in_a_sentence(change: dict[str, Any], copy: Path) -> None:
    _edit(copy / bundle.MANIFEST, **change)
    with pytest.raises(BundleError, match="is not a bundle manifest"):
        bundle.load_manifest(copy, "policy")


@pytest.mark.parametrize(
    "change", [{"levels": "3"}, {"levels": 0}, {"codebook_size": [8, None]}, {"max_history": True}]
)
def test_a_policy_that_states_no_numbers_is_refused_in_a_sentence(change: dict[str, Any], copy: Path) -> None:
    extra = read_json(copy / bundle.MANIFEST)["extra"]
    _edit(copy / bundle.MANIFEST, extra=extra | change)
    with pytest.raises(BundleError, match="states levels, codebook_size and max_history as"):
        load_policy(forge(copy))


# --- releases ---


def test_a_release_holds_what_tessera_writes_and_nothing_else(policy_bundle: Path, tmp_path: Path) -> None:
    """Triton's Python looks for modules in the folder of the release."""
    folder = export(policy_bundle, tmp_path / "models")
    assert newest(tmp_path / "models").number == 1
    compiled = "__pycache__/kernels.cpython-311.pyc"
    for stranger in ("kernels.py", "kernels/__init__.py", compiled, ".x", "sids-1.parquet"):
        (folder / stranger).parent.mkdir(exist_ok=True)
        (folder / stranger).touch()
        with pytest.raises(BundleError, match="which no release has; remove the release and promote its policy again"):
            newest(tmp_path / "models")
        (folder / stranger).unlink()
        if (folder / "kernels").is_dir():
            (folder / "kernels").rmdir()
    assert newest(tmp_path / "models").number == 1


def test_what_a_rename_publishes_has_reached_the_disk(
    policy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    published: list[Path] = []
    fsync, rename = os.fsync, Path.rename

    def record(handle: int) -> None:
        synced.add(os.fstat(handle).st_ino)
        fsync(handle)

    def check(path: Path, target: Path) -> Path:
        assert [one for one in (path, *path.rglob("*")) if one.stat().st_ino not in synced] == []
        published.append(Path(target))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(Path, "rename", check)
    bundle.save(tmp_path / "b", "policy", lambda new: (new / "a.json").touch(), config={}, metrics={}, parent="t")
    synced.clear()
    folder = export(policy_bundle, tmp_path / "models")
    assert published == [tmp_path / "b", folder]
    assert {one.stat().st_ino for one in (tmp_path, folder.parent)} & synced == {folder.parent.stat().st_ino}


# --- models in the registry ---


def test_what_was_downloaded_is_what_the_registry_promised(registered: tuple[Path, Registry]) -> None:
    """Whoever may write where MLflow keeps artefacts exchanges one whole bundle for another."""
    _, registry = registered
    mine, other = registry.download(POLICY, "1"), registry.download(POLICY, "2")
    kept = mine.with_name("kept")
    mine.rename(kept)
    shutil.copytree(other, mine)
    with pytest.raises(BundleError, match=r"is registered as bundle \w+ of tokenizer \w+, its artefacts hold"):
        registry.download(POLICY, "1")
    shutil.rmtree(mine)
    kept.rename(mine)
    registry.download(POLICY, "1")


@pytest.mark.parametrize("tag", ["../../../planted", "/tmp/planted", "", "0123456789ab/..", "é"])
def test_a_bundles_version_is_no_path(registered: tuple[Path, Registry], tag: str) -> None:
    folder, registry = registered
    right = registry.resolve("1").bundle_version
    before = everything_below(folder)
    try:
        registry.client.set_model_version_tag(POLICY, "1", "bundle_version", tag)
        with pytest.raises(BundleError, match="which is no version of a bundle; register the bundle again"):
            registry.download(POLICY, "1")
    finally:
        registry.client.set_model_version_tag(POLICY, "1", "bundle_version", right)
    assert everything_below(folder) == before


def test_the_newer_sids_are_those_that_the_tag_promises(registered: tuple[Path, Registry]) -> None:
    folder, registry = registered
    newer_sids.publish(registry, registry.resolve("1"), folder / "a" / "sids.parquet")
    version = registry.resolve("1")
    fetched = newer_sids.fetch(registry, version)
    assert fetched is not None
    assert fetched.read_bytes() == (folder / "a" / "sids.parquet").read_bytes()
    right, run = version.tags[newer_sids.TAG], version.run_id
    for tag in ("../../x/sids.parquet", "newer_sids/0123456789ab/..", "newer_sids/../x", "newer_sids", "/etc/hostname"):
        version.tags[newer_sids.TAG] = tag
        assert newer_sids.index_version(version) in ("", "0123456789ab")
        with pytest.raises(BundleError, match="which names no SIDs table"):
            newer_sids.fetch(registry, version)
    version.tags[newer_sids.TAG] = right
    registry.client.log_artifact(run, str(folder / "b" / "sids.parquet"), right.rpartition("/")[0])
    with pytest.raises(BundleError, match="does not match its name"):
        newer_sids.fetch(registry, version)


@pytest.mark.parametrize("place", ["../outside", "/etc", "artifacts/../../outside", "", ".", "a\0b", 3, ["a"], None])
def test_a_model_names_no_bundle_outside_itself(place: Any, tmp_path: Path) -> None:
    flavour = {"artifacts": {"bundle": {"path": place}}}
    (tmp_path / "MLmodel").write_text(yaml.safe_dump({"flavors": {"python_function": flavour}}))
    with pytest.raises(BundleError, match=r"(outside itself; do not use this model|register it again)\.$"):
        find_bundle(tmp_path)


ALONE = """
import json, sys
sys.path.append(sys.argv[1])  # packages without the .pth files by which this project is installed
try:
    import tessera
except ImportError:
    import mlflow, pandas, numpy
else:
    sys.exit("the project is to be had without the model")
policy, tokenizer = map(mlflow.pyfunc.load_model, sys.argv[2:])
items = policy.predict(pandas.DataFrame({"history": [["item-1", "item-2"]]}), params={"k": 5})
codes = tokenizer.predict(pandas.DataFrame({"text": [[1.0, 0, 0, 0]], "image": [[0, 1.0, 0]]}))
foreign = {name.split(".")[0] for name in sys.modules} & {"serving", "components", "pipelines", "feature_repo"}
print(json.dumps([items.item_ids[0], codes.sid[0], sys.modules["tessera"].__file__, sorted(foreign)]))
"""


@pytest.mark.integration
def test_a_registered_model_brings_its_code_and_requires_packages_of_the_index_alone(
    policy_bundle: Path, make_tokenizer: Callable[[Path], Path], tmp_path: Path
) -> None:
    bundles = {"policy": policy_bundle, "tokenizer": make_tokenizer(tmp_path / "t")}
    for kind, folder in bundles.items():
        save_pyfunc(tmp_path / kind, folder, bundle.load_manifest(folder, kind))
        required = (tmp_path / kind / "requirements.txt").read_text().split()
        assert [one for one in required if "tessera" in one or "+" in one or "==" not in one] == []
        assert {"torch", "transformers", "mlflow"} <= {one.split("==")[0] for one in required}
        assert sum(path.stat().st_size for path in (tmp_path / kind / "code").rglob("*")) < 2_000_000
        assert not list((tmp_path / kind / "code").rglob("*.pyc"))
    packages, models = sysconfig.get_paths()["purelib"], [str(tmp_path / kind) for kind in bundles]
    command = [sys.executable, "-S", "-c", ALONE, packages, *models]
    outcome = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    items, sid, file, foreign = json.loads(outcome.stdout.splitlines()[-1])
    expected = Recommender.load(policy_bundle).recommend([["item-1", "item-2"]], 5)[0]
    assert items == [one.item_id for one in expected]
    text, image = torch.eye(4)[:1].numpy(), torch.eye(3)[1:2].numpy()
    assert sid == "_".join(map(str, Tokenizer.load(bundles["tokenizer"]).encode(text, image)[0]))
    assert Path(file).is_relative_to(tmp_path)
    assert foreign == []
