"""Teacher samples on disk: generated once, by any number of processes, and read a few rows at a time.

A folder holds shards (safetensors) and a manifest (JSON) with their checksums. Noise is not stored: it is
drawn again from the seeds, with one generator per sample.

Examples
--------
Samples of a custom model:

>>> import tempfile
>>> from gas_ext import Denoiser, NoiseSchedule
>>> from gas_ext.solvers import UniPCSolver
>>> denoiser = Denoiser.from_callable(
...     lambda x, t, condition: 0.5 * x, schedule=NoiseSchedule.vp_linear(), prediction_type="sample",
...     sample_shape=(1, 64))
>>> with tempfile.TemporaryDirectory() as folder:
...     samples = generate_samples(denoiser, UniPCSolver(denoiser.schedule, 5), range(10), folder)
...     batch = samples.batch([7, 2])
>>> batch.noise.shape, batch.samples.shape, batch.seeds.tolist()
(torch.Size([2, 1, 64]), torch.Size([2, 1, 64]), [7, 2])
"""

from gas_ext._utils.noise import stacked_noise
from gas_ext.samples.batches import ShuffledBatches
from gas_ext.samples.filling import verify_samples
from gas_ext.samples.generate import generate_samples, spread_conditions
from gas_ext.samples.published import ReferenceDataset, convert_dataset
from gas_ext.samples.reading import SampleBatch, SampleSource, TeacherSamples

__all__ = [
    "ReferenceDataset",
    "SampleBatch",
    "SampleSource",
    "ShuffledBatches",
    "TeacherSamples",
    "convert_dataset",
    "generate_samples",
    "spread_conditions",
    "stacked_noise",
    "verify_samples",
]
