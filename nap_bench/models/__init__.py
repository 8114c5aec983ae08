"""Network families. A family is `Family(spec, num_seeds, inputs, outputs)`, built out of `blocks` on the meta device."""

from nap_bench.models.cnn import CNN
from nap_bench.models.mlp import MLP

FAMILIES = {"cnn": CNN, "mlp": MLP}
