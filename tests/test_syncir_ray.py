import importlib
from pathlib import Path

import pytest
from test_syncir_pipeline import config, contents, folder, models, run  # noqa: F401 - a fixture among them

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_two_ray_workers_give_the_bytes_of_one_process(folder, tmp_path, monkeypatch):  # noqa: F811
    ray = pytest.importorskip("ray")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    example = importlib.import_module("syncir_ray")
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    paths = f"{ROOT / 'examples'}:{ROOT / 'tests'}:{ROOT}"
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": paths}}, log_to_driver=False)
    try:
        example.run_on_ray(str(folder), str(tmp_path / "ray"), config(), workers=2, shards=4, make_models=models)
    finally:
        ray.shutdown()
    run(folder, tmp_path / "one")
    assert contents(tmp_path / "one") == contents(tmp_path / "ray")
