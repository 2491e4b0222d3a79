"""Pipelines of diffusers with random weights and a vocabulary of letters, small enough for a moment."""

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LDMPipeline,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    TextToVideoSDPipeline,
    UNet1DModel,
    UNet2DConditionModel,
    UNet2DModel,
    UNet3DConditionModel,
    VQModel,
)
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from gas_ext.teachers.diffusers import from_diffusers

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WIDTH = 16
TOKENS = 8  # of a prompt


def ddim(**options):
    """The schedule of Stable Diffusion, ending at its first noise level, without clipping."""
    settings = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "trailing",
    }
    return DDIMScheduler(**{**settings, **options})


def clip_tokenizer():
    tokens = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    return CLIPTokenizer({token: i for i, token in enumerate(tokens)}, [], model_max_length=TOKENS)


def clip_encoder(projection=False, seed=0):
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=2 + 2 * len(LETTERS),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        projection_dim=WIDTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def t5_tokenizer():
    pieces = ["<pad>", "</s>", "<unk>", "▁", *LETTERS]
    return T5TokenizerFast([(piece, -float(i)) for i, piece in enumerate(pieces)], extra_ids=0)


def t5_encoder():
    torch.manual_seed(3)
    config = T5Config(
        vocab_size=4 + len(LETTERS), d_model=2 * WIDTH, d_kv=8, d_ff=WIDTH, num_layers=2, num_heads=2
    )
    return T5EncoderModel(config)


def autoencoder(latent_channels=4, **options):
    torch.manual_seed(1)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=latent_channels,
        norm_num_groups=4,
        **options,
    )


def unet(network, down, up, **options):
    """A U-Net of two levels, given the kinds of its blocks from the input to the output."""
    torch.manual_seed(2)
    sizes = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    return network(down_block_types=down, up_block_types=up, **{**sizes, **options})


def unet_2d(**options):
    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    return unet(UNet2DModel, down, up, attention_head_dim=8, **options)


def conditional_unet(cross_attention_dim=WIDTH, **options):
    down, up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    return unet(
        UNet2DConditionModel,
        down,
        up,
        attention_head_dim=2,
        cross_attention_dim=cross_attention_dim,
        **options,
    )


def unet_1d():
    torch.manual_seed(2)
    return UNet1DModel(
        sample_size=32,
        in_channels=2,
        out_channels=2,
        time_embedding_type="positional",
        use_timestep_embedding=True,
        flip_sin_to_cos=True,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownResnetBlock1D",) * 3,
        up_block_types=("UpResnetBlock1D",) * 2,
        mid_block_type="MidResTemporalBlock1D",
        out_block_type="OutConv1DBlock",
        norm_num_groups=4,
        act_fn="swish",
        layers_per_block=1,
    )


def ddpm():
    return DDPMPipeline(unet_2d(), ddim(beta_start=1e-4, beta_end=0.02, beta_schedule="linear"))


def ldm():
    torch.manual_seed(1)
    vqvae = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=3,
        num_vq_embeddings=16,
        norm_num_groups=4,
        scaling_factor=0.5,
    )
    return LDMPipeline(vqvae, unet_2d(), ddim())


def dit():
    torch.manual_seed(2)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=1000,
        norm_elementwise_affine=False,
    )
    scheduler = ddim(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    return DiTPipeline(transformer, autoencoder(), scheduler)


def stable_diffusion(**scheduler):
    return StableDiffusionPipeline(
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
    config = CLIPConfig(text_config=tower, vision_config=vision, projection_dim=8)
    judging = {
        "safety_checker": StableDiffusionSafetyChecker(config),
        "feature_extractor": CLIPImageProcessor(),
    }
    return StableDiffusionPipeline(**{**stable_diffusion().components, **judging})


def stable_diffusion_2():
    """v-prediction with zero terminal SNR."""
    return stable_diffusion(prediction_type="v_prediction", rescale_betas_zero_snr=True)


def sdxl(**options):
    network = conditional_unet(
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )
    return StableDiffusionXLPipeline(
        vae=autoencoder(scaling_factor=0.13, force_upcast=True),
        text_encoder=clip_encoder(),
        text_encoder_2=clip_encoder(projection=True, seed=4),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=network,
        scheduler=ddim(),
        **options,
    )


def sd3(t5=True):
    torch.manual_seed(2)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(scaling_factor=1.5, shift_factor=0.06),
        text_encoder=clip_encoder(projection=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_encoder(projection=True, seed=4),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder() if t5 else None,
        tokenizer_3=t5_tokenizer() if t5 else None,
    )


def flux(guidance_embeds=True):
    torch.manual_seed(2)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 2, 2),
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=autoencoder(scaling_factor=0.36, shift_factor=0.1),
        text_encoder=clip_encoder(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
    )


def text_to_video():
    down, up = ("CrossAttnDownBlock3D", "DownBlock3D"), ("UpBlock3D", "CrossAttnUpBlock3D")
    network = unet(UNet3DConditionModel, down, up, attention_head_dim=4, cross_attention_dim=WIDTH)
    return TextToVideoSDPipeline(autoencoder(), clip_encoder(), clip_tokenizer(), network, ddim())


PROMPTS = ["a cat", "dog"]
T5_TOKENS = {"max_sequence_length": TOKENS}

# family -> (how it is built, options of from_diffusers, a condition for two samples)
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


def noise_for(teacher, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, *teacher.sample_shape, dtype=dtype, generator=generator)
