"""ASEN++ (TIP 2021) after its released code, github.com/Maryeon/asenpp: a global and a local branch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import masks_to_boxes

from m3lib.config import Loss, Variant
from m3lib.systems.attention import AttributeAttention, ChannelAttention, SpatialAttention, unit
from m3lib.systems.backbone import STRIDE, Backbone, copy_trunk
from m3lib.systems.base import Outputs, System
from m3lib.taxonomy import Taxonomy


class ASENpp(System):
    """ASEN++: the global branch finds the region of each attribute, the local branch embeds it at a higher resolution.

    g_n = L2(FC h_n)                                 global branch: ASEN_v2's attention and an output layer
    region_n = box around strong alpha_n, cropped    from the stored image, which is larger where input_scale < 1
    l_n = L2(local branch of region_n)               a second backbone and attention, with the same attribute table
    score = beta cos(g, g') + (1 - beta) cos(l, l')  the product of concatenated sqrt(beta) g and sqrt(1 - beta) l

    The local branch starts with the first stage that weighs asen_pp_local or asen_pp_align. In the paper its backbone
    then has ImageNet weights; without such weights, model.local_from_global copies the global backbone.
    """

    outputs = {"attribute", "local"}
    losses = {"asen_triplet", "asen_pp_local", "asen_pp_align", "classification", "m3_classification"}
    settings = {
        "attention_width", "queries", "attention_batch_norm", "attribute_embedding", "box_threshold", "beta",
        "local_backbone", "local_backbone_options", "local_weights", "local_from_global", "local_attention_width",
        "local_size",
    }  # fmt: skip

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__(variant, taxonomy)
        C, model = self.backbone.channels, variant.model
        self.attributes = AttributeAttention(C, taxonomy.num_attributes, model)
        self.output = nn.Linear(C, model.attribute_embedding)
        name, options = model.local_backbone, model.local_backbone_options
        if not name:
            name, options = model.backbone, model.backbone_options
        self.local_backbone = Backbone(
            name, options, model.pretrained, model.local_weights, prefix="local_", trainable=model.trainable
        )
        c, q, width = self.local_backbone.channels, self.attributes.table.width, model.local_attention_width
        self.local_spatial = SpatialAttention(c, width, q, model.attention_batch_norm)
        self.local_channel = ChannelAttention(c, model.attention_width, q, squeeze=width // 2)
        self.local_output = nn.Linear(c, model.attribute_embedding)
        self.heads = self.class_heads(variant, model.attribute_embedding)
        self.register_buffer("joined", torch.tensor(False))  # saved, so that a resumed run continues with both branches
        self.from_global, self.threshold, self.beta = model.local_from_global, model.box_threshold, model.beta
        self.crop_scale = model.input_scale * model.local_size  # side of a resized crop / side of the stored image

    def forward(self, images: Tensor) -> Outputs:
        features = self.backbone.features(images)  # (B, C, rows, columns)
        alpha, _, h = self.attributes(features.flatten(2).mT)  # (B, N, P), _, (B, N, C)
        g = self.output(h)  # (B, N, D)
        local = None
        if self.joined:
            local = unit(self.local_embeddings(images, alpha.detach().unflatten(2, features.shape[2:])))
        return Outputs(unit(g), local, self.heads(g) if self.heads else None, attribute_maps=alpha)

    def local_embeddings(self, images: Tensor, alpha: Tensor) -> Tensor:
        """Return (B, N, D): the attended region of each image and attribute, cropped, resized to a square, embedded.

        alpha: (B, N, rows, columns).
        """
        size, num_attributes = alpha.shape[:2]
        regions = find_regions(alpha.flatten(0, 1), images.shape[2:], self.threshold)  # (B * N, 4)
        side = max(STRIDE, round(self.crop_scale * min(images.shape[2:])))
        x = self.local_backbone(crop(images.repeat_interleave(num_attributes, 0), regions, (side, side)))  # (B N, p, c)
        queries = self.attributes.table.rows
        # a crop is compared with the query of its attribute only: keys once, one query per crop
        keys = self.local_spatial.keys(x).unflatten(0, (size, num_attributes))  # (B, N, p, h)
        logits = (keys * self.local_spatial.queries(queries)[:, None]).sum(dim=3)  # (B, N, p)
        weights = logits.float().softmax(dim=-1).to(x.dtype)
        z = (weights[..., None] * x.unflatten(0, (size, num_attributes))).sum(dim=2)  # (B, N, c)
        return self.local_output(z * self.local_channel(z, queries))

    def reads_pixels(self) -> bool:
        return bool(self.joined)  # the regions that the local branch reads

    def retrieval_embedding(self, outputs: Outputs) -> Tensor:
        if outputs.local is None:
            return outputs.attribute
        return torch.cat([self.beta**0.5 * outputs.attribute, (1 - self.beta) ** 0.5 * outputs.local], dim=2)

    def enter_stage(self, loss: Loss) -> None:
        if (loss.asen_pp_local or loss.asen_pp_align) and not self.joined:
            if self.from_global:
                copy_trunk(self.backbone, self.local_backbone)
            self.joined.fill_(True)


def find_regions(alpha: Tensor, sides: tuple[int, int], threshold: float) -> Tensor:
    """Return (K, 4) float: top, left, height and width, in pixels, of where each map (K, rows, columns) is strong.

    As the released code: the map is enlarged to the image, scaled to [0, 1] by its minimum and maximum, rounded down to
    8 bits, and thresholded at > 255 threshold. The bounding box becomes a square of its longer side with the same
    center, shifted to lie inside the image (and cut if it is larger than the image). A map without a strong pixel, as
    a constant map, selects the full image.
    """
    H, W = sides
    large = F.interpolate(alpha[:, None].float(), (H, W), mode="bilinear", align_corners=False)[:, 0]  # (K, H, W)
    low, high = large.amin(dim=(1, 2), keepdim=True), large.amax(dim=(1, 2), keepdim=True)
    level = ((large - low) / (high - low).clamp(min=1e-12) * 255).floor()
    strong = level > 255 * threshold  # (K, H, W)
    strong |= ~strong.any(dim=(1, 2), keepdim=True)
    left, top, right, bottom = masks_to_boxes(strong).T  # (K,) each, the last pixels included
    side = torch.maximum(bottom - top, right - left) + 1  # (K,)
    tall, wide = side.clamp(max=H), side.clamp(max=W)
    top = torch.minimum(((top + bottom + 1 - tall) / 2).clamp(min=0), H - tall)
    left = torch.minimum(((left + right + 1 - wide) / 2).clamp(min=0), W - wide)
    return torch.stack([top, left, tall, wide], dim=1)


def crop(images: Tensor, regions: Tensor, sides: tuple[int, int]) -> Tensor:
    """Return (K, 3, h, w): each region (top, left, height, width) of its image (K, 3, H, W), resized bilinearly."""
    H, W = images.shape[2:]
    top, left, tall, wide = regions.T[:, :, None]  # (K, 1) each
    rows = top + (torch.arange(sides[0], device=images.device) + 0.5) / sides[0] * tall  # (K, h), pixel coordinates
    columns = left + (torch.arange(sides[1], device=images.device) + 0.5) / sides[1] * wide  # (K, w)
    x = (2 * columns / W - 1)[:, None, :].expand(-1, sides[0], -1)
    y = (2 * rows / H - 1)[:, :, None].expand(-1, -1, sides[1])
    grid = torch.stack([x, y], dim=3).to(images.dtype)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
