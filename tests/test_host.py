"""What a process that uses vqcomp as a library has set up stays as it is."""

from __future__ import annotations

import numpy as np
import pytest
from golden import CONFIG, model
from networks import random_segment

from vqcomp.runtime.compute import Compute
from vqcomp.runtime.kinds import make_codec

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("adapt", [False, True])
def test_coding_leaves_torchs_settings_as_they_were(adapt):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        codec = make_codec(CONFIG.spec, model(), adapt=adapt, compute=Compute("cpu", threads=1))
        segment = random_segment(CONFIG.spec, 4)
        (stream,) = codec.encode([[segment]])
        ((found,),) = codec.decode([stream], [[4]])
        codec.close()
        np.testing.assert_array_equal(found, segment)
        assert torch.get_num_threads() == 2
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.set_num_threads(before)
        torch.backends.cuda.matmul.allow_tf32 = False
