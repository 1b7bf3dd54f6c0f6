"""A small model behind a server, shared by the tests of the server."""

import pytest
from api.conftest import model, on_cpu, scan  # noqa: F401

from modules import Predictor


@pytest.fixture(scope="session")
def predictor(model):  # noqa: F811
    """The small model, loaded once."""
    return Predictor.load(model, "openvino")


@pytest.fixture(scope="session")
def client(predictor, tmp_path_factory):
    """A client of a server of the small model with uploads of 1 MiB, and the folder of its temporary files as `temporary`."""
    from serve_helpers import serve

    from modules.serve.limits import Limits

    with pytest.MonkeyPatch.context() as patch, serve(predictor, Limits(megabytes=1)) as found:
        folder = tmp_path_factory.mktemp("temporary")
        patch.setattr("tempfile.tempdir", str(folder))
        found.temporary = folder
        yield found
