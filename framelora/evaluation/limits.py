"""Where a metric stops meaning what its name says. It is then left out, and the tables say why."""

# The shorter side of the frames, in pixels.
SMALLEST_SIDE = {
    "ms_ssim": 176,  # five scales of an 11 pixel window need more than 160, and torchmetrics a multiple of 16
    "st_lpips": 32,  # three halvings leave less than a 3 pixel window below
    "vmaf": 128,  # the coarsest of its four scales, 1/16, has 8 pixels then
}
# Samples, below which a Frechet distance says more about their number than about their quality.
FEWEST = {"fid": 2048, "fvd": 256}
