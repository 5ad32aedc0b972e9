"""A pocket student for tests of distillation."""

import json
from pathlib import Path

from datagen.distill.config import parse_config

SEGMENTER = {
    "image_size": 64,
    "num_maskmem": 2,
    "image_encoder.trunk.embed_dim": 8,
    "image_encoder.trunk.num_heads": 1,
    "image_encoder.trunk.stages": [1, 1, 2, 1],
    "image_encoder.trunk.global_att_blocks": [3],
    "image_encoder.trunk.window_spec": [8, 4, 4, 2],
    "image_encoder.trunk.window_pos_embed_bkg_spatial_size": [4, 4],
    "image_encoder.neck.d_model": 64,
    "image_encoder.neck.position_encoding.num_pos_feats": 64,
    "image_encoder.neck.backbone_channel_list": [64, 32, 16, 8],
    "memory_attention.num_layers": 1,
    "memory_attention.d_model": 64,
    "memory_attention.layer.d_model": 64,
    "memory_attention.layer.dim_feedforward": 64,
    "memory_attention.layer.dropout": 0.0,
    "memory_attention.layer.self_attention.embedding_dim": 64,
    "memory_attention.layer.self_attention.feat_sizes": [4, 4],
    "memory_attention.layer.self_attention.dropout": 0.0,
    "memory_attention.layer.cross_attention.embedding_dim": 64,
    "memory_attention.layer.cross_attention.feat_sizes": [4, 4],
    "memory_attention.layer.cross_attention.dropout": 0.0,
    "memory_encoder.in_dim": 64,
    "memory_encoder.mask_downsampler.embed_dim": 64,
    "memory_encoder.fuser.num_layers": 1,
    "memory_encoder.fuser.layer.dim": 64,
}
LLM = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
STUDENT = {"segmenter": SEGMENTER, "llm": LLM, "vocabulary": 600}


def pocket(*stages, **options):
    """A configuration with the pocket student."""
    return parse_config({"stages": list(stages), "student": STUDENT, "seed": 3, "steps_per_epoch": 3, "device": "cpu", **options})


def metrics_of(output):
    """The metrics of a training, but for how long it took."""
    lines = [json.loads(line) for line in Path(f"{output}.work/metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]
