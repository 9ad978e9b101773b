"""VideoGLaMM: the host of the released SPARROW (`spec/model.md` section 1, `spec/hosts.md` section 1.1).

Two frozen towers look at the same 16 frames: CLIP at 336 px picture by picture, InternVideo2 at 224 px four frames at a
time. Each has its own projector into Phi-3's space, and pooling comes after projection.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d
from transformers import CLIPVisionConfig, CLIPVisionModel, Phi3Config, Phi3ForCausalLM

from model import sam
from model.hosts import clip
from model.hosts.base import Host, HostSpec
from model.hosts.internvideo2 import InternVideo2, InternVideo2Config
from model.hosts.tokenizer import byte_tokenizer
from model.hosts.videoglamm_inputs import END, VideoGLaMMConfig, VideoGLaMMInputs


class VideoGLaMM(Host):
    """Inputs of its towers: {"image": [16, 3, 336, 336], "video": [16, 3, 224, 224]} for a video, {"image": [1, ...]}
    for a picture."""

    @staticmethod
    def configs() -> dict[str, VideoGLaMMConfig]:
        tiny = VideoGLaMMConfig(
            vocab=320,
            llm_dim=64,
            llm_layers=2,
            llm_heads=4,
            llm_mlp=128,
            max_len=1024,
            sliding_window=512,
            clip_dim=32,
            clip_layers=3,
            clip_heads=4,
            clip_mlp=64,
            clip_size=56,
            video=InternVideo2Config(
                width=64,
                depth=3,
                heads=4,
                mlp=128,
                image_size=56,
                pooled=32,
                teacher=32,
                teacher_final=32,
                teacher_layers=1,
            ),
            video_text=32,
            sam="2.0-tiny",
            sam_size=128,
            tokenizer="bytes",
        )
        return {"full": VideoGLaMMConfig(), "tiny": tiny}

    def __init__(self, config: VideoGLaMMConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or VideoGLaMMConfig()
        if config.frames % config.video.frames:
            raise ValueError(
                f"frames={config.frames}: take a multiple of the {config.video.frames} of a video chunk"
            )
        dim = config.llm_dim
        self.spec = HostSpec(
            name="videoglamm",
            llm_dim=dim,
            patch_dim=config.clip_dim,
            seg_token="[SEG]",
            seg_vectors=1,
            seg_read="post_norm",
            seg_granularity="video",
            max_len=config.max_len,
            sam=config.sam,
            sam_size=config.sam_size,
            sam_postprocess=True,
            pads=2,
            temporal_dim=config.video.width,
            lora_targets=("qkv_proj",),
            projectors=("image_projector", "video_projector"),
        )
        self.llm = Phi3ForCausalLM(
            Phi3Config(
                vocab_size=config.vocab,
                hidden_size=dim,
                intermediate_size=config.llm_mlp,
                num_hidden_layers=config.llm_layers,
                num_attention_heads=config.llm_heads,
                max_position_embeddings=config.max_len,
                original_max_position_embeddings=config.max_len,
                sliding_window=config.sliding_window,
                bos_token_id=None,
                eos_token_id=None,
                pad_token_id=None,
            )
        )
        self.image_encoder = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=config.clip_dim,
                intermediate_size=config.clip_mlp,
                num_hidden_layers=config.clip_layers,
                num_attention_heads=config.clip_heads,
                image_size=config.clip_size,
                patch_size=14,
            )
        )
        self.video_encoder = InternVideo2(config.video)
        self.vision_proj = nn.Linear(config.video.pooled, config.video_text)
        for tower in (self.image_encoder, self.video_encoder, self.vision_proj):
            tower.requires_grad_(False)
        self.image_projector = nn.Sequential(
            nn.Linear(config.clip_dim, dim), nn.GELU(), nn.Linear(dim, dim)
        )
        self.video_projector = nn.Sequential(
            nn.Linear(config.video.width, dim), nn.GELU(), nn.Linear(dim, dim)
        )
        self.seg_head = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 256), nn.Dropout(0.0)
        )
        self.sam = sam.build_sam(config.sam, postprocess=True, image_size=config.sam_size)
        self.sam.memory_dtype = torch.bfloat16
        self.tokenizer = (
            byte_tokenizer(["<|system|>", "<|user|>", "<|assistant|>", END, "[SEG]"])
            if config.tokenizer == "bytes"
            else None
        )

    @property
    def inputs(self) -> VideoGLaMMInputs:
        return VideoGLaMMInputs(self.config, self.spec, self.tokenizer)

    # --- eyes ---

    def visual_tokens(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """One block: of a video all spatial tokens frame by frame, then all temporal ones: [16 * 144 + 16 * 64, D].

        Of a picture [576, D], not pooled. ValueError for other keys and shapes.
        """
        return self.visual_tokens_each([inputs])[0]

    def visual_tokens_each(self, inputs: Sequence[dict[str, Tensor]]) -> list[list[Tensor]]:
        config, side = self.config, self.config.video.image_size
        for one in inputs:
            good = {
                "image": (
                    config.frames if "video" in one else 1,
                    3,
                    config.clip_size,
                    config.clip_size,
                )
            }
            if "video" in one:
                good["video"] = (config.frames, 3, side, side)
            if (seen := {name: tuple(pixels.shape) for name, pixels in one.items()}) != good:
                raise ValueError(f"videoglamm looks at {good}, not {seen}")
        counts = [len(one["image"]) for one in inputs]
        patches = clip.patch_tokens(self.image_encoder, torch.cat([one["image"] for one in inputs]))
        spatial = self.project_spatial(patches).split(counts)
        videos = [one["video"] for one in inputs if "video" in one]
        temporal = iter(
            self.project_temporal(self.video_patches(torch.cat(videos))).split(config.frames)
            if videos
            else ()
        )
        return [
            [torch.cat([halve(seen).flatten(0, 1), halve(next(temporal)).flatten(0, 1)])]
            if "video" in one
            else [seen[0]]
            for one, seen in zip(inputs, spatial, strict=True)
        ]

    def video_patches(self, pixels_t3ss: Tensor) -> Tensor:
        """[T, 3, 224, 224] -> [T, 256, 1408]: four frames at a time, the last block but one, no class token."""
        encoder = self.video_encoder
        weight = encoder.cls_token
        chunks = (
            pixels_t3ss.to(weight.device, weight.dtype)
            .unflatten(0, (-1, encoder.config.frames))
            .transpose(1, 2)
        )
        return encoder(chunks)[:, 1:].unflatten(1, (encoder.config.frames, -1)).flatten(0, 1)

    def crop_patches(self, pixels: Tensor) -> Tensor:
        """[n, 3, 336, 336] -> [n, 576, 1024]."""
        return clip.patch_tokens(self.image_encoder, pixels)

    def project_spatial(self, patches: Tensor) -> Tensor:
        return self.image_projector(patches)

    def project_temporal(self, features: Tensor) -> Tensor:
        return self.video_projector(features)

    @property
    def ends(self) -> set[int]:
        return super().ends | {self.token_id(END)}


def halve(tokens_tnd: Tensor) -> Tensor:
    """Square grids of tokens [T, n, D] -> [T, n / 4, D]: adaptive average pooling to half the side."""
    frames, count, width = tokens_tnd.shape
    side = round(count**0.5)
    maps = tokens_tnd.transpose(1, 2).reshape(frames, width, side, side)
    return adaptive_avg_pool2d(maps, side // 2).flatten(2).transpose(1, 2)
