"""DeepSpeed's results on one weight and input (quantization/test_quantizers.py), and numbers to draw tests from."""

from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

# On a busy machine a few draws may take a second.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

ORACLE = load_file(Path(__file__).parent / "fixtures" / "oracle.safetensors")

# Weights up to here keep every scale finite; what lies beyond is refused by `pack_weight`.
LARGEST = {"float16": 60000.0, "bfloat16": 2.0**100, "float32": 2.0**100}


def floats_up_to(largest):
    """Ordinary, small, subnormal and huge numbers of either sign."""
    return st.one_of(*(st.floats(-limit, limit, width=32) for limit in (1.0, largest, 2.0**-13, 2.0**-120, 2.0**-147)))


ELEMENTS = {largest: floats_up_to(largest) for largest in LARGEST.values()}
