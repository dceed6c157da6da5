"""Networks of other packages that sample, tiny and with random weights: nothing is downloaded.

``PACKAGED`` lists them by name. A package is imported where its network is built; none is needed to import this.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.public import smooth, values
from tests.real import homography

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Packaged:
    """One of them: the package that it needs, what makes it, and the arguments of a call for a batch."""

    package: str
    module: Callable[[], nn.Module]
    arguments: Callable[[int], tuple[Any, ...]]
    noise: float = 0.2  # added to the weights

    def build(self) -> nn.Module:
        """Make it with the same weights every time, none of them zero, in evaluation mode."""
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(3)
            module = self.module().eval()
            for parameter in module.parameters():  # many packages begin with offsets and gates of zero
                parameter.add_(self.noise * torch.randn(parameter.shape))
        return module

    def example(self, n: int) -> Call:
        """The arguments and keywords of a call."""
        return self.arguments(n), {}


class Applied(nn.Module):
    """A package's function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor, *others: Tensor) -> Any:
        return self.function(images, *others)


def pictures(*shape: int) -> Callable[[int], tuple[Tensor, ...]]:
    """One argument: smooth pictures of this shape, in any number."""
    return lambda n: (smooth(n, *shape),)


def flows(*shape: int) -> Callable[[int], tuple[Tensor, ...]]:
    """Pictures or volumes, and displacements of some pixels."""
    return lambda n: (smooth(n, 2, *shape), 6 * (smooth(n + 1, len(shape), *shape)[:n] - 0.5))


def residual() -> Any:
    """The configuration of a backbone of four small stages."""
    from transformers import ResNetConfig

    stages = ["stage1", "stage2", "stage3", "stage4"]
    return ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, layer_type="basic", out_features=stages
    )


def deformable_detr(**options: Any) -> nn.Module:
    """X. Zhu et al., "Deformable DETR", 2020; with ``two_stage`` the best proposals are its queries."""
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 6, "num_feature_levels": 4}
    config = DeformableDetrConfig(backbone_config=residual(), num_labels=3, **sizes, **heads, **options)
    return DeformableDetrForObjectDetection(config)


def rt_detr_sizes() -> dict[str, Any]:
    """What the configurations of RT-DETR and of what came after it share."""
    hidden = {"encoder_hidden_dim": 32, "d_model": 32, "decoder_in_channels": [32] * 3, "encoder_ffn_dim": 32}
    few = {"decoder_ffn_dim": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "encoder_attention_heads": 4}
    return {"encoder_in_channels": [8, 16, 16], "num_queries": 6, "num_labels": 3, **hidden, **few}


def rt_detr_backbone() -> Any:
    """The configuration of RT-DETR's backbone."""
    from transformers import RTDetrResNetConfig

    stages = ["stage2", "stage3", "stage4"]
    return RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, layer_type="basic", out_features=stages
    )


def rt_detr() -> nn.Module:
    """Y. Zhao et al., "DETRs Beat YOLOs on Real-time Object Detection", 2023."""
    from transformers import RTDetrConfig, RTDetrForObjectDetection

    return RTDetrForObjectDetection(RTDetrConfig(backbone_config=rt_detr_backbone(), **rt_detr_sizes()))


def rt_detr_v2(method: str) -> nn.Module:
    """W. Lv et al., "RT-DETRv2", 2024; ``discrete`` reads the nearest pixels by their indices."""
    from transformers import RTDetrV2Config, RTDetrV2ForObjectDetection

    config = RTDetrV2Config(backbone_config=rt_detr_backbone(), decoder_method=method, **rt_detr_sizes())
    return RTDetrV2ForObjectDetection(config)


def d_fine() -> nn.Module:
    """Y. Peng et al., "D-FINE", 2024."""
    from transformers import DFineConfig, DFineForObjectDetection, HGNetV2Config

    stages = {
        "stem_channels": [3, 8, 8],
        "stage_in_channels": [8, 8, 8, 16],
        "stage_mid_channels": [8] * 4,
        "stage_out_channels": [8, 8, 16, 16],
        "stage_num_blocks": [1] * 4,
        "stage_numb_of_layers": [1] * 4,
        "hidden_sizes": [8, 8, 16, 16],
    }
    backbone = HGNetV2Config(depths=[1] * 4, embedding_size=8, out_features=["stage2", "stage3", "stage4"], **stages)
    return DFineForObjectDetection(DFineConfig(backbone_config=backbone, decoder_n_points=4, **rt_detr_sizes()))


def mask2former() -> nn.Module:
    """B. Cheng et al., "Masked-attention Mask Transformer", 2021: deformable attention in its pixel decoder."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    sizes = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 32}
    few = {"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 4, "dim_feedforward": 32}
    config = Mask2FormerConfig(backbone_config=residual(), num_queries=6, num_labels=3, **sizes, **few)
    return Mask2FormerForUniversalSegmentation(config)


def oneformer() -> nn.Module:
    """J. Jain et al., "OneFormer", 2022: as Mask2Former, its task given as tokens."""
    from transformers import OneFormerConfig, OneFormerForUniversalSegmentation

    sizes = {"conv_dim": 32, "mask_dim": 32, "hidden_dim": 32, "encoder_feedforward_dim": 32, "dim_feedforward": 32}
    few = {"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 4, "query_dec_layers": 1, "task_seq_len": 8}
    config = OneFormerConfig(backbone_config=residual(), num_queries=6, num_labels=3, **sizes, **few)
    return OneFormerForUniversalSegmentation(config)


def tasked(n: int) -> tuple[Tensor, Tensor]:
    """Pictures, and the tokens of a task."""
    return smooth(n, 3, 64, 96), torch.arange(8).repeat(n, 1) + torch.arange(n)[:, None]


def superpoint() -> nn.Module:
    """D. DeTone et al., "SuperPoint", 2017: descriptors sampled at the points that are found."""
    from transformers import SuperPointConfig, SuperPointForKeypointDetection

    sizes = {"encoder_hidden_sizes": [8, 8, 16, 16], "decoder_hidden_size": 16, "descriptor_decoder_dim": 16}
    return SuperPointForKeypointDetection(SuperPointConfig(**sizes))


def efficientloftr() -> nn.Module:
    """Y. Wang et al., "Efficient LoFTR", 2024: the features of two pictures before they are matched."""
    from transformers import EfficientLoFTRConfig, EfficientLoFTRModel

    sizes = {"stage_num_blocks": [1] * 4, "out_features": [16, 16, 32, 64], "stage_stride": [2, 1, 2, 2]}
    matching = {
        "num_attention_layers": 1,
        "num_attention_heads": 8,
    }
    config = EfficientLoFTRConfig(hidden_size=64, **matching, **sizes)
    return EfficientLoFTRModel(config)


def warped_affine() -> nn.Module:
    """kornia's ``warp_affine`` by matrices that are an input, in pixels."""
    from kornia.geometry.transform import warp_affine

    return Applied(lambda images, matrices: warp_affine(images, matrices, (20, 28)))


def turned(n: int) -> tuple[Tensor, Tensor]:
    """Pictures, and 2×3 matrices near the identity, in pixels."""
    return smooth(n, 3, 24, 32), torch.eye(2, 3) + torch.tensor([0.2, 0.2, 4.0]) * values(n, 2, 3)


def lens_taken_out() -> nn.Module:
    """kornia's ``undistort_image``: a lens of five coefficients taken out."""
    from kornia.geometry.calibration import undistort_image

    camera = torch.tensor([[30.0, 0.0, 16.0], [0.0, 30.0, 12.0], [0.0, 0.0, 1.0]])
    lens = torch.tensor([0.1, -0.05, 0.01, 0.01, 0.02])

    def undistorted(images: Tensor) -> Tensor:
        n = len(images)
        return undistort_image(images, camera.to(images).expand(n, -1, -1), lens.to(images).expand(n, -1))

    return Applied(undistorted)


def spline() -> nn.Module:
    """kornia's thin-plate spline: weights solved for from points, then pictures warped."""
    from kornia.geometry.transform import get_tps_transform, warp_image_tps

    def warped(images: Tensor, moved: Tensor) -> Tensor:
        points = moved.new_tensor([[-1, -1], [1, -1], [-1, 1], [1, 1], [0.1, 0.2]]).expand(len(moved), -1, -1)
        kernel, affine = get_tps_transform(points, points + moved)
        return warp_image_tps(images, points + moved, kernel, affine)

    return Applied(warped)


def patches() -> nn.Module:
    """kornia's ``extract_patches_simple``: a patch for every local affine frame."""
    from kornia.feature import extract_patches_simple

    return Applied(lambda images, frames: extract_patches_simple(images, frames, PS=8))


def frames(n: int) -> tuple[Tensor, Tensor]:
    """Pictures of one channel, and five local affine frames in each."""
    shapes = torch.eye(2, 3) * 4 + values(n, 5, 2, 3, scale=2.0)
    return smooth(n, 1, 32, 40), shapes + torch.tensor([[0.0, 0.0, 18.0], [0.0, 0.0, 15.0]])


def affine_shapes() -> nn.Module:
    """kornia's AffNet: the shapes of patches, which it samples itself. D. Mishkin et al., "AffNet", 2018."""
    from kornia.feature import LAFAffNetShapeEstimator

    class Shaped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.estimator = LAFAffNetShapeEstimator(pretrained=False)

        def forward(self, images: Tensor, frames: Tensor) -> Tensor:
            return self.estimator(frames, images)

    return Shaped()


def depth_warped() -> nn.Module:
    """kornia's ``warp_frame_depth``: a picture seen from another place, as networks that learn depth do."""
    from kornia.geometry.depth import warp_frame_depth

    return Applied(warp_frame_depth)


def seen(n: int) -> tuple[Tensor, ...]:
    """Pictures, depths, movements and cameras."""
    camera = torch.tensor([[30.0, 0.0, 16.0], [0.0, 30.0, 12.0], [0.0, 0.0, 1.0]])
    moved = torch.eye(4) + 0.1 * values(n, 4, 4) * torch.tensor([1.0, 1.0, 1.0, 0.0])[:, None]
    return smooth(n, 3, 24, 32), 2 + smooth(n, 1, 24, 32), moved, camera.expand(n, -1, -1).contiguous()


def warped_volume() -> nn.Module:
    """kornia's ``warp_affine3d``."""
    from kornia.geometry.transform import warp_affine3d

    return Applied(lambda volumes, matrices: warp_affine3d(volumes, matrices, (7, 8, 9)))


def turned_volume(n: int) -> tuple[Tensor, Tensor]:
    """Volumes, and 3×4 matrices near the identity, in voxels."""
    return smooth(n, 2, 8, 9, 10), torch.eye(3, 4) + torch.tensor([0.2, 0.2, 0.2, 2.0]) * values(n, 3, 4)


def aligned() -> nn.Module:
    """kornia's deformable convolution of ALIKED, over torchvision's. X. Zhao et al., "ALIKED", 2023."""
    from kornia.feature.aliked.aliked import DeformableConv2d

    return DeformableConv2d(3, 4)


def monai_warp() -> nn.Module:
    """MONAI's ``Warp`` by a dense displacement field, as registration networks end."""
    from monai.networks.blocks import Warp

    return Warp()


def monai_integrated() -> nn.Module:
    """MONAI's ``DVF2DDF``: a velocity field integrated by warping it with itself, three times."""
    from monai.networks.blocks import DVF2DDF

    return DVF2DDF(num_steps=3)


def monai_affine() -> nn.Module:
    """MONAI's ``AffineTransform``."""
    from monai.networks.layers import AffineTransform

    return AffineTransform(normalized=True)


def turned_monai(*shape: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Pictures or volumes, and square matrices near the identity, in normalised coordinates."""

    def arguments(n: int) -> tuple[Tensor, Tensor]:
        size = len(shape) + 1
        theta = torch.eye(size) + 0.4 * values(n, size, size)
        theta[:, -1] = torch.eye(size)[-1]
        return smooth(n, 2, *shape), theta

    return arguments


def region_align() -> nn.Module:
    """torchvision's ``roi_align``: features averaged over boxes. K. He et al., "Mask R-CNN", 2017."""
    from torchvision.ops import roi_align

    def aligned(images: Tensor, corners: Tensor) -> Tensor:
        boxes = torch.cat([torch.arange(len(images))[:, None].to(corners), corners], 1)
        return roi_align(images, boxes, (4, 5), 0.5, 2, aligned=True)

    return Applied(aligned)


def boxed(n: int) -> tuple[Tensor, Tensor]:
    """Pictures, and two corners of a box in each: another picture's number would be read beyond the pictures."""
    corners = torch.tensor([[4.0, 6.0, 40.0, 30.0], [10.5, 2.25, 55.0, 44.0], [0.0, 0.0, 60.0, 40.0]])[:n]
    return smooth(n, 3, 24, 32), corners


def raft() -> nn.Module:
    """torchvision's small RAFT, two updates, the last flow. Z. Teed, J. Deng, "RAFT", 2020."""
    from torchvision.models.optical_flow import raft_small

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.raft = raft_small()

        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return self.raft(first, second, num_flow_updates=2)[-1]

    return Last()


def perspective() -> nn.Module:
    """torchvision's v2 ``perspective`` by eight coefficients."""
    from torchvision.transforms.v2.functional import perspective

    coefficients = [0.9, 0.1, 1.0, -0.1, 0.95, 0.5, 0.001, -0.002]
    return Applied(lambda images: perspective(images, None, None, coefficients=coefficients))


def naflex() -> nn.Module:
    """timm's NaFlexViT, its position embeddings sampled at the patches' places."""
    from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg

    sizes = {"patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 4, "pos_embed_grid_size": (4, 4)}
    return NaFlexVit(NaFlexVitCfg(pos_embed="learned", pos_embed_use_grid_sample=True, **sizes), num_classes=3)


def patched(n: int) -> tuple[Tensor, ...]:
    """Patches as rows, their places, and which of them are part of the picture."""
    places = torch.stack(torch.meshgrid(torch.arange(5), torch.arange(6), indexing="ij"), -1).view(1, 30, 2)
    return values(n, 30, 48), places.repeat(n, 1, 1), (torch.arange(30) < 28).repeat(n, 1)


def seen_by_detectors(n: int) -> tuple[Tensor]:
    """Noise: of like features the best proposals are a matter of rounding."""
    return (values(n, 3, 64, 96, scale=2.0),)


SEEN = seen_by_detectors
PACKAGED = {
    "deformable detr": Packaged("transformers", deformable_detr, SEEN),
    "deformable detr, two stages": Packaged(
        "transformers", lambda: deformable_detr(two_stage=True, with_box_refine=True, two_stage_num_proposals=6), SEEN
    ),
    "rt-detr": Packaged("transformers", rt_detr, SEEN),
    "rt-detr v2": Packaged("transformers", lambda: rt_detr_v2("default"), SEEN),
    "rt-detr v2, discrete": Packaged("transformers", lambda: rt_detr_v2("discrete"), SEEN),
    "d-fine": Packaged("transformers", d_fine, SEEN),
    "mask2former": Packaged("transformers", mask2former, SEEN),
    "oneformer": Packaged("transformers", oneformer, tasked),
    "superpoint of transformers": Packaged("transformers", superpoint, pictures(3, 64, 96)),
    "efficient loftr": Packaged("transformers", efficientloftr, lambda n: (values(n, 2, 3, 64, 96),)),
    "homography of kornia": Packaged("kornia", homography, pictures(3, 32, 48)),
    "affine of kornia": Packaged("kornia", warped_affine, turned),
    "undistorted": Packaged("kornia", lens_taken_out, pictures(3, 24, 32)),
    "spline of kornia": Packaged("kornia", spline, lambda n: (smooth(n, 3, 24, 32), values(n, 5, 2, scale=0.4))),
    "patches of kornia": Packaged("kornia", patches, frames),
    "affnet": Packaged("kornia", affine_shapes, frames, noise=0.1),  # with more, shapes of a thousand pixels
    "depth warp": Packaged("kornia", depth_warped, seen),
    "affine of kornia, 3-D": Packaged("kornia", warped_volume, turned_volume),
    "aliked's convolution": Packaged("kornia", aligned, pictures(3, 16, 20)),
    "warp of monai": Packaged("monai", monai_warp, flows(16, 20)),
    "warp of monai, 3-D": Packaged("monai", monai_warp, flows(8, 9, 10)),
    "integrated field": Packaged("monai", monai_integrated, lambda n: flows(16, 20)(n)[1:]),
    "integrated field, 3-D": Packaged("monai", monai_integrated, lambda n: flows(8, 9, 10)(n)[1:]),
    "affine of monai": Packaged("monai", monai_affine, turned_monai(16, 20)),
    "affine of monai, 3-D": Packaged("monai", monai_affine, turned_monai(8, 9, 10)),
    "naflexvit": Packaged("timm", naflex, patched),
    "roi align": Packaged("torchvision", region_align, boxed),
    "raft": Packaged(  # with more noise its flow is of a thousand pixels, and a change of 1e-7 moves it by 4e-3
        "torchvision", raft, lambda n: (smooth(n, 3, 128, 136), smooth(n + 1, 3, 128, 136)[:n]), noise=0.001
    ),
    "perspective of torchvision": Packaged("torchvision", perspective, pictures(3, 24, 32)),
}
