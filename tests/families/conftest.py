from collections.abc import Callable
from pathlib import Path

import pytest

from tests.families import models


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """kind, options of ``models.make`` → the directory of that model, built once."""
    made: dict[str, Path] = {}

    def get(kind: str, **options: int) -> Path:
        key = repr((kind, sorted(options.items())))
        if key not in made:
            folder = tmp_path_factory.mktemp(kind.replace("/", "_").replace(" ", "_"))
            made[key] = models.make(kind, folder, **options)
        return made[key]

    return get


@pytest.fixture(params=models.KINDS, scope="session")
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name
