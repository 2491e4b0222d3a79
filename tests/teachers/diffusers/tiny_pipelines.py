"""Pipelines of diffusers with random weights and a vocabulary of letters, small enough for a moment."""

import diffusers
import pytest
import torch
import transformers
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

from gas_ext.teachers.diffusers import from_diffusers

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WIDTH = 16
TOKENS = 8  # of a prompt
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}


def ddim(**options):
    """The schedule of Stable Diffusion, ending at its first noise level, without clipping."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    steps = {"set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "trailing"}
    return diffusers.DDIMScheduler(**{**betas, **steps, "clip_sample": False, **options})


def linear_ddim():
    return ddim(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")


def clip_tokenizer():
    tokens = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(vocabulary, [], model_max_length=TOKENS)


def clip_encoder(projection=False, seed=0):
    torch.manual_seed(seed)
    config = transformers.CLIPTextConfig(
        vocab_size=2 + 2 * len(LETTERS),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        projection_dim=WIDTH,
        **{"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
    )
    return (transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel)(config)


def t5_tokenizer():
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *LETTERS]
    return transformers.T5TokenizerFast([(piece, -float(i)) for i, piece in enumerate(pieces)], extra_ids=0)


def t5_encoder():
    torch.manual_seed(3)
    sizes = {"d_model": 2 * WIDTH, "d_kv": 8, "d_ff": WIDTH, "num_layers": 2, "num_heads": 2}
    return transformers.T5EncoderModel(transformers.T5Config(vocab_size=4 + len(LETTERS), **sizes))


def autoencoder(network=diffusers.AutoencoderKL, latent_channels=4, **options):
    torch.manual_seed(1)
    return network(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=latent_channels,
        norm_num_groups=4,
        **options,
    )


def unet(network, down, up, **options):
    """A U-Net of two levels, given the types of its blocks from the input to the output."""
    torch.manual_seed(2)
    sizes = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    return network(down_block_types=down, up_block_types=up, **{**sizes, **options})


def unet_2d(**options):
    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    return unet(diffusers.UNet2DModel, down, up, attention_head_dim=8, **options)


def conditional_unet(**options):
    down, up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    options = {"attention_head_dim": 2, "cross_attention_dim": WIDTH, **options}
    return unet(diffusers.UNet2DConditionModel, down, up, **options)


def unet_1d():
    down, up = ("DownResnetBlock1D",) * 3, ("UpResnetBlock1D",) * 2
    blocks = {"mid_block_type": "MidResTemporalBlock1D", "out_block_type": "OutConv1DBlock"}
    time = {"time_embedding_type": "positional", "use_timestep_embedding": True, "flip_sin_to_cos": True}
    sizes = {"sample_size": 32, "in_channels": 2, "out_channels": 2, "block_out_channels": (8, 16, 16)}
    return unet(diffusers.UNet1DModel, down, up, act_fn="swish", **blocks, **time, **sizes)


def ddpm():
    return diffusers.DDPMPipeline(unet_2d(), linear_ddim())


def ldm():
    vqvae = autoencoder(diffusers.VQModel, 3, num_vq_embeddings=16, scaling_factor=0.5)
    return diffusers.LDMPipeline(vqvae, unet_2d(), ddim())


def dit():
    torch.manual_seed(2)
    sizes = {**HEADS, "in_channels": 4, "out_channels": 8, "num_layers": 2, "sample_size": 8}
    transformer = diffusers.DiTTransformer2DModel(
        **sizes, num_embeds_ada_norm=1000, norm_elementwise_affine=False
    )
    return diffusers.DiTPipeline(transformer, autoencoder(), linear_ddim())


def stable_diffusion(**scheduler):
    return diffusers.StableDiffusionPipeline(
        vae=autoencoder(scaling_factor=0.2),
        text_encoder=clip_encoder(),
        tokenizer=clip_tokenizer(),
        unet=conditional_unet(),
        scheduler=ddim(**scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_with_safety_checker():
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = {**tower, "image_size": 8, "patch_size": 4}
    config = transformers.CLIPConfig(text_config=tower, vision_config=vision, projection_dim=8)
    judges = {
        "safety_checker": StableDiffusionSafetyChecker(config),
        "feature_extractor": transformers.CLIPImageProcessor(),
    }
    return diffusers.StableDiffusionPipeline(**{**stable_diffusion().components, **judges})


def stable_diffusion_2():
    """v-prediction with zero terminal SNR."""
    return stable_diffusion(prediction_type="v_prediction", rescale_betas_zero_snr=True)


def sdxl_unet(cross_attention_dim=2 * WIDTH):
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    width = 6 * 8 + WIDTH
    return conditional_unet(
        cross_attention_dim=cross_attention_dim, projection_class_embeddings_input_dim=width, **added
    )


def two_clip_encoders(projection):
    return {
        "text_encoder": clip_encoder(projection),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": clip_encoder(projection=True, seed=4),
        "tokenizer_2": clip_tokenizer(),
    }


def sdxl(**options):
    vae = autoencoder(scaling_factor=0.13, force_upcast=True)
    parts = {"vae": vae, "unet": sdxl_unet(), "scheduler": ddim(), **two_clip_encoders(projection=False)}
    return diffusers.StableDiffusionXLPipeline(**parts, **options)


def sd3(t5=True):
    torch.manual_seed(2)
    transformer = diffusers.SD3Transformer2DModel(
        **HEADS,
        **{"sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 2, "pos_embed_max_size": 8},
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(scaling_factor=1.5, shift_factor=0.06),
        **two_clip_encoders(projection=True),
        text_encoder_3=t5_encoder() if t5 else None,
        tokenizer_3=t5_tokenizer() if t5 else None,
    )


def flux(guidance_embeds=True):
    torch.manual_seed(2)
    transformer = diffusers.FluxTransformer2DModel(
        **HEADS,
        **{"in_channels": 16, "num_layers": 1, "num_single_layers": 1, "axes_dims_rope": (4, 2, 2)},
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=guidance_embeds,
    )
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=autoencoder(scaling_factor=0.36, shift_factor=0.1),
        text_encoder=clip_encoder(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
    )


def text_to_video():
    down, up = ("CrossAttnDownBlock3D", "DownBlock3D"), ("UpBlock3D", "CrossAttnUpBlock3D")
    options = {"attention_head_dim": 4, "cross_attention_dim": WIDTH}
    network = unet(diffusers.UNet3DConditionModel, down, up, **options)
    return diffusers.TextToVideoSDPipeline(autoencoder(), clip_encoder(), clip_tokenizer(), network, ddim())


PROMPTS = ["a cat", "dog"]
T5_TOKENS = {"max_sequence_length": TOKENS}

# family -> (builder, options of from_diffusers, a condition for two samples)
FAMILIES = {
    "ddpm": (ddpm, {}, None),
    "ldm": (ldm, {}, None),
    "dit": (dit, {}, [3, 7]),
    "stable-diffusion": (stable_diffusion, {}, PROMPTS),
    "stable-diffusion-2": (stable_diffusion_2, {}, PROMPTS),
    "sdxl": (sdxl, {}, PROMPTS),
    "sd3": (sd3, T5_TOKENS, PROMPTS),
    "flux": (flux, {**T5_TOKENS, "sample_shape": (4, 8, 8)}, PROMPTS),
    "text-to-video": (text_to_video, {"sample_shape": (4, 3, 8, 8)}, PROMPTS),
    "signal": (unet_1d, {"scheduler": ddim()}, None),
}


def teacher_of(family, **options):
    build, settings, _ = FAMILIES[family]
    return from_diffusers(build(), name=family, **{**settings, **options})


def condition_of(family, teacher):
    return teacher.encode_condition(FAMILIES[family][2])


def noise_for(teacher, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, *teacher.sample_shape, dtype=dtype, generator=generator)


def refused(message, model, error=ValueError, **options):
    with pytest.raises(error, match=message):
        from_diffusers(model, **options)
