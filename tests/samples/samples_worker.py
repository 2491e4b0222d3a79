"""A process that makes samples slowly, to be killed: FOLDER [network seconds] [shard that ends it]."""

import os
import signal
import sys
import time

import torch
from sample_tools import make_denoiser, make_samples


def main(folder, seconds="0", last="-1"):
    def network(x, t, condition):
        time.sleep(float(seconds))
        return torch.tanh(x)

    replace = os.replace

    def replace_or_die(source, target):
        if str(target).endswith(f"shard-{int(last):05d}.safetensors"):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    if int(last) >= 0:
        os.replace = replace_or_die
    make_samples(folder, range(12), make_denoiser(function=network))


if __name__ == "__main__":
    main(*sys.argv[1:])
