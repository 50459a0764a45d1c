"""Properties of the presets: they can be made, have the sizes that they say, and ship as they are trained."""

import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from vqcomp.data.specs import COMMAVQ
from vqcomp.model_files import shipped_models
from vqcomp.runtime.errors import ModelError
from vqcomp.runtime.spec import TokenSpec
from vqcomp.runtime.weights import read_config
from vqcomp.training.config import TrainConfig
from vqcomp.training.presets import PRESETS, preset_for

WORLD_MODEL = TokenSpec(16, 16, (512, 512))


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("spec", [COMMAVQ, WORLD_MODEL, TokenSpec(2, 3, (5,))])
def test_every_preset_makes_an_exact_network_and_sensible_settings(name, spec):
    PRESETS[name].network(spec).check()
    TrainConfig(**PRESETS[name].settings).check()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_as_many_weights_as_they_say(name):
    said = re.match(r"([\d.]+) M weights", PRESETS[name].about)
    if said:
        found = PRESETS[name].network(COMMAVQ).parameters() / 1e6
        decimals = len(said[1].partition(".")[2])
        assert f"{found:.{decimals}f}" == said[1]


@pytest.mark.parametrize("name", ["pico", "nano", "mini", "small"])
def test_presets_of_shipped_models_make_their_networks(name):
    shipped = shipped_models().get(f"commavq-{name}")
    if shipped is None:
        pytest.skip(f"commavq-{name} does not ship")
    assert read_config(shipped.data)[0] == PRESETS[name].network(COMMAVQ)


def test_more_tokens_pay_for_larger_networks():
    sizes = [PRESETS[preset_for(10**n)].network(COMMAVQ).parameters() for n in range(4, 12)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 5
    assert preset_for(5_000 * 153_600) == "base"


def test_a_grid_too_large_to_compute_exactly_is_refused():
    with pytest.raises(ModelError, match="too large"):
        PRESETS["nano"].network(TokenSpec(64, 64, (1024,)))


def test_presets_and_settings_do_not_wait_for_torch():
    program = """
import sys
from vqcomp.data.specs import COMMAVQ
from vqcomp.training.config import TrainConfig, describe_settings
from vqcomp.training.presets import PRESETS
for preset in PRESETS.values():
    preset.network(COMMAVQ)
    TrainConfig(**preset.settings).check()
describe_settings()
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY)
