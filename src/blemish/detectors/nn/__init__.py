"""What the detectors share: backbones, cut graphs, gradients as graphs, the training loop, nearest-neighbour search."""

import os

# Before torch is loaded: its threads shall sleep, not spin, while they wait for each other. Beside other work on the
# same cores, spinning made one image take 1.4 s instead of 0.2 s (two cores, load 5); on idle cores it gains little.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
