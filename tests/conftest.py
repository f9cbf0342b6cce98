"""Fixtures shared by the tests: a tiny teacher whose widths are no multiples of 8, 5 or 4, and a device."""

import os
import warnings
from importlib.metadata import version
from importlib.util import find_spec

import pytest
import torch
from packaging.version import Version
from transformers import BertConfig, BertForSequenceClassification, set_seed

# The tests run on what users run, which is "auto". What promises bits takes the fixture `reference_backend`.
os.environ.pop("XTC_BACKEND", None)

# Where it is installed accelerate imports it, in the middle of a test, and it warns of much.
if find_spec("deepspeed"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed  # noqa: F401


def pytest_configure(config: pytest.Config) -> None:
    """Lets pass what libraries older than these warn of; `make test-oldest` has them."""
    if Version(version("datasets")) < Version("5.2"):
        config.addinivalue_line("filterwarnings", r"ignore:(Exception ignored in|unclosed file).*\.[ct]sv")
    if Version(version("matplotlib")) < Version("3.11"):
        config.addinivalue_line("filterwarnings", r"ignore:'\w+' .*deprecated.* use '\w+':DeprecationWarning")
    if Version(version("peft")) < Version("0.21"):
        config.addinivalue_line("filterwarnings", "ignore:Could not find a config file in  - will assume:UserWarning")


@pytest.fixture
def reference_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """New packed models compute on the reference backend: the bits of the latent model, in child processes too."""
    monkeypatch.setenv("XTC_BACKEND", "reference")


@pytest.fixture(scope="module")
def one_thread():
    """For models so small that threads only wait for each other, and for sums in the order of a single one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny_config() -> BertConfig:
    """Four layers of width 36, feed-forward 50, three labels."""
    return BertConfig(
        vocab_size=101,
        hidden_size=36,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=50,
        max_position_embeddings=40,
        num_labels=3,
    )


@pytest.fixture
def tiny_teacher(tiny_config: BertConfig) -> BertForSequenceClassification:
    """A random teacher of `tiny_config`, the same in every test, in eval mode."""
    set_seed(0)
    return BertForSequenceClassification(tiny_config).eval()


@pytest.fixture
def tiny_batch() -> dict[str, torch.Tensor]:
    """Three rows of eleven tokens; the last five of row 1 and the last eight of row 2 are padding."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(1, 101, (3, 11), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 6:] = 0
    attention_mask[2, 3:] = 0
    return {"input_ids": input_ids * attention_mask, "attention_mask": attention_mask}


@pytest.fixture(
    params=["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device this machine has."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def hub_process():
    """A Hub on loopback, over real HTTP, for all tests."""
    from hub_server import serve

    with serve() as hub:
        yield hub


@pytest.fixture
def hub(hub_process, tmp_path, monkeypatch):
    """That Hub, empty, with `huggingface_hub` of this process as its client: logged in as `user`, cache empty."""
    import huggingface_hub
    import huggingface_hub.constants as constants
    from huggingface_hub.utils import close_session

    hub_process.clear()
    changes = {
        "ENDPOINT": hub_process.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub_process.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hub-cache"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in changes.items():
        monkeypatch.setattr(constants, name, value)
    # Both made once, for the endpoint of that moment; older versions have only the first.
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub_process.endpoint)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_user")
    if Version(huggingface_hub.__version__) < Version("2"):  # whatever the endpoint is, it asks huggingface.co
        monkeypatch.setattr(huggingface_hub.RepoCard, "validate", lambda card: None)
    yield hub_process
    close_session()
