"""Prompts, labels and guidance of every family of diffusers."""

import pytest
import torch
from diffusers import DDPMScheduler
from tiny_pipelines import (
    FAMILIES,
    PROMPTS,
    TOKENS,
    WIDTH,
    condition_of,
    flux,
    noise_for,
    refused,
    sd3,
    sdxl,
    stable_diffusion,
    teacher_of,
    unet_2d,
)

from gas_ext import GASSampler, GeneralizedSolver
from gas_ext._utils.noise import take
from gas_ext.teachers.diffusers import from_diffusers

CONDITIONAL = [family for family, (_, _, condition) in FAMILIES.items() if condition is not None]
PROMPTED = [family for family in CONDITIONAL if family != "dit"]

# family -> keys of an encoded condition and the shape of one entry
ENCODED = {
    "stable-diffusion": {"encoder_hidden_states": (TOKENS, WIDTH)},
    "stable-diffusion-2": {"encoder_hidden_states": (TOKENS, WIDTH)},
    "text-to-video": {"encoder_hidden_states": (TOKENS, WIDTH)},
    "sdxl": {"encoder_hidden_states": (TOKENS, 2 * WIDTH), "text_embeds": (WIDTH,), "time_ids": (6,)},
    "sd3": {"encoder_hidden_states": (2 * TOKENS, 2 * WIDTH), "pooled_projections": (2 * WIDTH,)},
    "flux": {"encoder_hidden_states": (TOKENS, 2 * WIDTH), "pooled_projections": (WIDTH,), "guidance": ()},
}


@pytest.mark.slow
@pytest.mark.parametrize("family", CONDITIONAL)
def test_conditions_matter_and_belong_to_their_samples(family):
    teacher = teacher_of(family)
    x, t = noise_for(teacher), torch.tensor(0.5)
    both = condition_of(family, teacher)
    together = teacher(x, t, both)
    for i in range(2):
        alone = teacher(x[i : i + 1], t, take(both, slice(i, i + 1)))
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-4, atol=1e-5)
    swapped = teacher(x, t, take(both, torch.tensor([1, 0])))
    assert (swapped - together).abs().max() > 1e-4 * together.abs().max()
    # One condition serves a batch, and none is the unconditional one.
    first = take(both, slice(0, 1))
    torch.testing.assert_close(teacher(x, t, first)[:1], together[:1], rtol=1e-4, atol=1e-5)
    assert torch.equal(teacher(x, t), teacher(x, t, teacher.unconditional_condition()))
    with pytest.raises(ValueError, match="Got 3 samples and a condition of 2"):
        teacher(torch.cat([x, x[:1]]), t, both)


def test_negative_prompts():
    """In place of the empty prompt: one for all, or one per sample."""
    teacher = teacher_of("sdxl")
    sampler = GASSampler(GeneralizedSolver(teacher.schedule, 2), teacher, guidance_scale=2.0)
    noise = noise_for(teacher)
    with torch.no_grad():
        plain = sampler(noise, PROMPTS)
        for_all = sampler(noise, PROMPTS, "ugly")
        torch.testing.assert_close(sampler(noise, PROMPTS, ["ugly", "ugly"]), for_all, rtol=1e-5, atol=1e-5)
        mixed = sampler(noise, PROMPTS, ["ugly", "dull"])
    assert (plain - for_all).abs().min(0).values.max() > 1e-4
    torch.testing.assert_close(mixed[0], for_all[0], rtol=1e-5, atol=1e-5)
    assert (mixed[1] - for_all[1]).abs().max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("family", CONDITIONAL)
def test_guidance_joins_two_conditions(family):
    teacher = teacher_of(family)
    x, t, scale = noise_for(teacher), torch.tensor(1.0, dtype=torch.float64), 3.0
    condition, one = condition_of(family, teacher), FAMILIES[family][2][0]
    solver = GeneralizedSolver(teacher.schedule, 1, t_eps=teacher.t_eps)
    sampler = GASSampler(solver, teacher, guidance_scale=scale)
    with torch.no_grad():
        m, m_u = teacher(x, t, condition), teacher(x, t)
        by_hand = GASSampler(
            solver, lambda x, t, c: m_u + scale * (m - m_u), prediction_type=teacher.prediction_type
        )
        _, found = sampler(x, condition, return_trajectory=True)
        _, expected = by_hand(x, return_trajectory=True)
        torch.testing.assert_close(found.data[0], expected.data[0], rtol=1e-4, atol=1e-3)
        # One condition guides all samples. Encoded alone it is rounded differently, and data predictions
        # multiply that by 1 / alpha(1).
        expected = sampler(x, [one, one])
        for single in (one, [one]):
            torch.testing.assert_close(sampler(x, single), expected, rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match="Got 2 samples and a condition of 3"):
        sampler(x, [one] * 3)


@pytest.mark.parametrize("family", PROMPTED)
def test_prompts_become_tensors(family):
    teacher = teacher_of(family)
    condition = teacher.encode_condition(PROMPTS)
    assert {name: tuple(value.shape[1:]) for name, value in condition.items()} == ENCODED[family]
    assert all(len(value) == 2 and not value.requires_grad for value in condition.values())
    one = teacher.encode_condition(PROMPTS[1])
    for name, value in one.items():
        torch.testing.assert_close(value, condition[name][1:])
    again = teacher.encode_condition(condition)
    assert all(again[name] is value for name, value in condition.items())
    with pytest.raises(TypeError, match="must be strings"):
        teacher.encode_condition([3, 4])
    with pytest.raises(ValueError, match="empty list of prompts"):
        teacher.encode_condition([])
    with pytest.raises(ValueError, match=r"holds .*encoder_hidden_states.*but got hidden"):
        teacher.encode_condition({"hidden": torch.zeros(2, 3)})
    del condition["encoder_hidden_states"]
    with pytest.raises(ValueError, match="holds"):
        teacher.encode_condition(condition)


def test_encoded_conditions_are_checked():
    teacher = teacher_of("sd3")
    condition = teacher.encode_condition(PROMPTS)
    condition["pooled_projections"] = condition["pooled_projections"][:1]
    with pytest.raises(ValueError, match="differ in their first dimension"):
        teacher.encode_condition(condition)
    with pytest.raises(ValueError, match="must be a tensor whose first dimension"):
        teacher.encode_condition({**condition, "pooled_projections": 3.0})


def test_the_empty_prompt_is_encoded_once(monkeypatch):
    teacher = teacher_of("stable-diffusion")
    first = teacher.unconditional_condition()
    hidden = teacher.parts.pipeline.encode_prompt([""], torch.device("cpu"), 1, False)[0]
    assert torch.equal(first["encoder_hidden_states"], hidden)
    monkeypatch.setattr(teacher.parts.pipeline, "encode_prompt", None)
    assert torch.equal(teacher.unconditional_condition()["encoder_hidden_states"], hidden)


@pytest.mark.parametrize("zeros", [True, False])
def test_sdxl_may_use_zeros_for_the_empty_prompt(zeros):
    teacher = from_diffusers(sdxl(force_zeros_for_empty_prompt=zeros))
    condition = teacher.unconditional_condition()
    assert (condition["encoder_hidden_states"].abs().max() == 0) == zeros
    assert (condition["text_embeds"].abs().max() == 0) == zeros
    assert condition["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]]


def test_sdxl_is_conditioned_on_the_decoded_size():
    teacher = from_diffusers(sdxl(), sample_shape=(4, 6, 8))
    assert teacher.encode_condition("a")["time_ids"].tolist() == [[12, 16, 0, 0, 12, 16]]
    assert teacher(noise_for(teacher), torch.tensor(0.5), teacher.encode_condition("a")).shape == (2, 4, 6, 8)
    given = teacher.encode_condition("a") | {"time_ids": torch.tensor([[64.0, 64.0, 4.0, 0.0, 16.0, 16.0]])}
    assert teacher.encode_condition(given)["time_ids"][0, 2] == 4


def test_sd3_without_t5():
    pipeline = sd3(t5=False)
    teacher = from_diffusers(pipeline, max_sequence_length=TOKENS)
    hidden = teacher.encode_condition(PROMPTS)["encoder_hidden_states"]
    assert hidden.shape == (2, 2 * TOKENS, 2 * WIDTH)
    assert hidden[:, TOKENS:].abs().max() == 0


def test_flux_is_conditioned_on_its_guidance():
    weak, strong = (teacher_of("flux", distilled_guidance=scale) for scale in (1.0, 4.0))
    condition = weak.encode_condition(PROMPTS)
    assert condition["guidance"].tolist() == [1.0, 1.0]
    assert weak.guidance_scale is None  # the pipeline's default of 3.5 is the distilled one
    x, t = noise_for(weak), torch.tensor(0.5)
    assert not torch.equal(weak(x, t, condition), strong(x, t, strong.encode_condition(PROMPTS)))
    schnell = from_diffusers(flux(guidance_embeds=False), sample_shape=(4, 4, 8), max_sequence_length=TOKENS)
    assert set(schnell.encode_condition(PROMPTS)) == {"encoder_hidden_states", "pooled_projections"}
    assert schnell(x[:, :, :4], t, schnell.encode_condition(PROMPTS)).shape == (2, 4, 4, 8)


@pytest.mark.parametrize("tokenizer", ["absent", "no pipeline"])
def test_without_a_tokenizer_only_encoded_prompts_pass(tokenizer):
    pipeline = stable_diffusion()
    condition = {"encoder_hidden_states": torch.randn(2, TOKENS, WIDTH)}
    if tokenizer == "absent":
        pipeline.tokenizer = None
        teacher, lacking = from_diffusers(pipeline), "has no tokenizer"
    else:
        teacher = from_diffusers(pipeline.unet, scheduler=pipeline.scheduler, vae=pipeline.vae)
        lacking = "has no text encoder"
    for encode in (teacher.unconditional_condition, lambda: teacher.encode_condition(PROMPTS)):
        with pytest.raises(ValueError, match=lacking):
            encode()
    solver = GeneralizedSolver(teacher.schedule, 2)
    empty = {"encoder_hidden_states": torch.zeros(1, TOKENS, WIDTH)}
    with torch.no_grad():
        images = GASSampler(solver, teacher, guidance_scale=2.0)(noise_for(teacher), condition, empty)
    assert teacher.decode(images).shape == (2, 3, 16, 16)


def test_labels():
    dit = teacher_of("dit")
    assert dit.num_classes == dit.unconditional_condition() == 1000
    assert dit.encode_condition([0, 1000]).tolist() == [0, 1000]
    with pytest.raises(ValueError, match="one integer per sample from 0 to 999"):
        dit.encode_condition([1001])
    scheduler = DDPMScheduler()
    plain = from_diffusers(unet_2d(num_class_embeds=4), scheduler=scheduler)
    assert (plain.num_classes, plain.condition_kind) == (4, "label")
    x, t = noise_for(plain), torch.tensor(0.5)
    assert not torch.equal(plain(x, t, torch.tensor([0, 1])), plain(x, t, torch.tensor([2, 3])))
    with pytest.raises(ValueError, match="has no label 4"):
        plain.encode_condition([1, 4])
    with pytest.raises(ValueError, match="needs a label for each sample"):
        plain(x, t)
    sampler = GASSampler(GeneralizedSolver(plain.schedule, 2), plain, guidance_scale=2.0)
    with pytest.raises(ValueError, match="num_classes=3"):
        sampler(x, [0, 1])
    with_null = from_diffusers(unet_2d(num_class_embeds=4), scheduler=scheduler, num_classes=3)
    assert with_null.unconditional_condition() == 3
    assert torch.equal(with_null(x, t), plain(x, t, torch.tensor([3, 3])))
    refused("give 4, or 3", unet_2d(num_class_embeds=4), scheduler=scheduler, num_classes=2)
    refused("takes no labels", unet_2d(), scheduler=scheduler, num_classes=2)
