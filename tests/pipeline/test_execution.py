"""Nothing executes data: pickles and YAML tags are refused unread, and no code calls what could execute them."""

import ast
import pickle
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from m3lib import config, validation
from m3lib.data import manifest, store
from m3lib.errors import InputError
from m3lib.retrieval.embeddings import Embeddings
from m3lib.systems import backbone, imagenet
from m3lib.training.trainer import Trainer
from notebook_runs import check_sentence
from stripes import PREPARED, short
from tiny import BACKBONE, ROOT


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.fixture
def trap(tmp_path):
    """A file that must not be created."""
    pickle.loads(pickle.dumps(Evil(tmp_path / "works")))
    assert (tmp_path / "works").exists()
    yield tmp_path / "pwned"
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.ckpt", "w.safetensors", "w"])
@pytest.mark.parametrize("form", ["torch", "plain"])
def test_a_pickle_as_weights_is_refused_unread(tmp_path, trap, name, form):
    if form == "torch":
        torch.save({"weight": Evil(trap)}, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(Evil(trap)))
    with pytest.raises(InputError, match="safetensors") as error:
        backbone.create_trunk("resnet10t", BACKBONE, False, str(tmp_path / name))
    check_sentence(str(error.value), [name, "model.weights"])


def test_a_pickle_as_embeddings_or_checkpoint_is_refused_unread(tmp_path, trap):
    path = tmp_path / "m3.safetensors"
    torch.save({"rows": Evil(trap)}, path)
    with pytest.raises(InputError, match="can't be read as embeddings"):
        Embeddings.load(path)
    assert not Trainer(PREPARED, short("m3"), 0, 1).resume(path, "print")


@pytest.mark.parametrize("name", [store.RAW, store.INDEX])
def test_a_pickle_in_an_image_store_is_refused_unread(prepared, trap, name):
    if name == store.INDEX:
        (prepared / store.JPEGS).write_bytes(b"x")
    np.save(prepared / name, np.array([Evil(trap)]), allow_pickle=True)
    with pytest.raises(InputError, match="not a prepared data set"):
        manifest.open_prepared(prepared)


def test_a_pickle_in_a_package_of_weights_executes_nothing(tmp_path, trap, monkeypatch):
    """Not even one whose checksum is the expected one, which the tests of imagenet.py compare before it is opened."""
    torch.save({"_conv_stem.weight": Evil(trap)}, tmp_path / "w.pth")
    monkeypatch.setattr(imagenet, "packaged_file", lambda _: tmp_path / "w.pth")
    with pytest.raises(pickle.UnpicklingError):
        imagenet.convert("tf_efficientnet_lite0")


def test_a_python_tag_in_yaml_is_refused_unread(tmp_path, trap):
    for call in ("os.system ['touch {}']", "pathlib.Path.touch ['{}']", "subprocess.run [['touch', '{}']]"):
        (tmp_path / "params.yaml").write_text(f"seed: !!python/object/apply:{call.format(trap)}\n")
        with pytest.raises(InputError, match=r"params\.yaml, line 1: .*python/object"):
            config.load(tmp_path / "params.yaml")


FORBIDDEN = re.compile(
    r"eval|exec|compile|__import__|os\.(system|popen)|pickle\.(load|loads|Unpickler)|"
    r"pd\.(eval|read_pickle)|yaml\.(unsafe_load|full_load)|socket\.socket"
)
PICKLING = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
# The one pickle that is read: of a package, after its checksum was compared.
THE_PICKLE = ("imagenet.py", "torch.load(packaged_file(backbone), map_location='cpu', weights_only=True)")
LOCAL = {"socket.socket(socket.AF_UNIX)", "socket.socket(fileno=int(sys.argv[2]))"}  # a file, and that file inherited


def parsed_code() -> dict[str, ast.Module]:
    code = {path.name: path.read_text() for path in (ROOT / "m3lib").rglob("*.py")}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        code[path.name] = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    return {name: ast.parse(text) for name, text in code.items()}


def test_no_code_calls_what_could_execute_data():
    trees = parsed_code().items()
    calls = [(name, node) for name, tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert len(calls) > 2000
    assert [(name, ast.unparse(node)) for name, node in calls if "torch.load" in ast.unparse(node.func)] == [THE_PICKLE]
    for name, node in calls:
        if ast.unparse(node) in LOCAL:
            continue
        function, keywords = ast.unparse(node.func), {word.arg: word.value for word in node.keywords}
        assert not FORBIDDEN.fullmatch(function), f"{name}: {function}"
        assert "shell" not in keywords, f"{name}: {function}"
        if function in ("np.load", "numpy.load"):
            assert ast.unparse(keywords.get("allow_pickle", ast.Constant(False))) == "False", name  # numpy's default
        if function == "yaml.load":
            assert ast.unparse(node.args[1]) == "Loader", name
        if re.fullmatch(r"subprocess\.[a-z_]+", function):
            assert not isinstance(node.args[0], ast.Constant | ast.JoinedStr), f"{name}: give a command as a list"
    assert issubclass(validation.Loader, validation.yaml.SafeLoader)


def test_one_module_imports_pickle_and_calls_it_by_its_name():
    """By another name, the test above would not see it. pack.py only writes with it, for a digest."""
    found = []
    for name, tree in parsed_code().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found += [(name, ast.unparse(node)) for alias in node.names if alias.name.split(".")[0] in PICKLING]
            elif isinstance(node, ast.ImportFrom):
                assert str(node.module).split(".")[0] not in PICKLING, name
                imported = {f"{node.module}.{alias.name}" for alias in node.names}
                assert not imported & {"torch.load", "torch.serialization", "pandas.read_pickle", "numpy.load"}, name
    assert found == [("pack.py", "import pickle")]
