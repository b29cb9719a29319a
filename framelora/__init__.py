"""framelora: LoRA adapters for video diffusion models, as a pipeline."""

import os

# Threads that wait for each other must sleep, not spin: with a second process on the cores (another shard), spinning
# made a training step of 1 s take 14 s. OpenMP reads this once, when torch is loaded, so it has to be set before.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
