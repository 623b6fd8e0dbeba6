"""The start of the studies on Imagenette: a ViT-S/14 for 112 pixels, by the flag --model FILE:vit_small_patch14_112."""

from timm.models.vision_transformer import VisionTransformer


def vit_small_patch14_112(num_classes: int = 10, **kwargs: object) -> VisionTransformer:
    """Width 384, 12 blocks of 6 heads, 64 patches and a class token; LayerScale is folded into the weights."""
    return VisionTransformer(
        img_size=112, patch_size=14, embed_dim=384, depth=12, num_heads=6, num_classes=num_classes, **kwargs
    )
