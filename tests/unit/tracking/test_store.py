"""The store that tracking.uri names."""

from pathlib import Path

import pytest

from tests import REPO
from wp1.tracking import store as store_module


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One store for all tests of this file: making its tables takes MLflow seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


def test_a_relative_store_is_the_projects_wherever_one_stands(tmp_path: Path) -> None:
    store = store_module.store_of("sqlite:///mlflow.db", tmp_path)
    assert store.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert not store.in_project
    project = REPO
    assert store_module.store_of("sqlite:///mlflow.db", project).in_project
