"""ASEN, ASEN_v2 and ASEN++, after their released code (github.com/Maryeon/asen and asenpp).

Differences that hold for all: a batch gives the embeddings of every attribute at once, and the backbone is any timm
model. Letters as in system.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3lib.config import Loss, Variant
from m3lib.systems.attention import AttributeAttention, ChannelAttention, SpatialAttention, unit
from m3lib.systems.backbone import STRIDE, Backbone, copy_trunk
from m3lib.systems.base import Outputs, System
from m3lib.taxonomy import Taxonomy


class ASEN(System):
    """ASEN (AAAI 2020), after class ASENet: attention from a one-hot attribute.

    Its two linear layers of a one-hot vector are written as the learned tables that they are. The tanh around the
    spatial logits is in the released code; it bounds the attention's contrast to a ratio of e^2.
    """

    outputs = {"attribute"}
    losses = {"asen_triplet", "m3_classification"}
    settings = {"attention_width", "attribute_embedding"}

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__(variant, taxonomy)
        C, h, N = self.backbone.channels, variant.model.attention_width, taxonomy.num_attributes
        self.project = nn.Linear(C, h)  # a 1x1 convolution
        self.spatial_query = one_hot_table(N, h)
        self.spatial_logit = nn.Linear(h, 1)
        self.channel_query = one_hot_table(N, C)
        self.channel_gate = nn.Sequential(nn.Linear(2 * C, h), nn.ReLU(), nn.Linear(h, C), nn.Sigmoid())
        self.output = nn.Linear(C, variant.model.attribute_embedding)
        self.heads = self.class_heads(variant, variant.model.attribute_embedding)

    def forward(self, images: Tensor) -> Outputs:
        X = self.backbone(images)  # (B, P, C)
        U = torch.tanh(self.project(X))  # (B, P, h)
        # the logit is linear in a_n * U, so its weights are folded into the queries: no (B, N, P, h) tensor
        query = torch.tanh(self.spatial_query) * self.spatial_logit.weight  # (N, h)
        logits = torch.tanh(query @ U.mT + self.spatial_logit.bias)  # (B, N, P)
        maps = logits.float().softmax(dim=-1)
        z = maps.to(X.dtype) @ X  # (B, N, C)
        r = torch.relu(self.channel_query).expand(len(z), -1, -1)  # (B, N, C)
        h = z * self.channel_gate(torch.cat([z, r.to(z.dtype)], dim=2))  # (B, N, C)
        f = self.output(h)  # (B, N, D)
        return Outputs(unit(f), logits=self.heads(f) if self.heads else None, attribute_maps=maps)


def one_hot_table(num_attributes: int, width: int) -> nn.Parameter:
    """The weight of a bias-free linear layer of a one-hot vector, with that layer's initial range."""
    bound = num_attributes**-0.5
    return nn.Parameter(torch.empty(num_attributes, width).uniform_(-bound, bound))


class ASENv2(System):
    """ASEN_v2, after class ASENet_V2 of ASEN's repository: one attribute table for both attentions, D = C.

    The released convolution has a bias in front of its batch norm, which cancels it; here it has none.
    """

    outputs = {"attribute"}
    losses = {"asen_triplet", "m3_classification"}
    settings = {"attention_width", "queries", "attention_batch_norm"}

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__(variant, taxonomy)
        C, model = self.backbone.channels, variant.model
        self.attributes = AttributeAttention(
            C, taxonomy.num_attributes, model.attention_width, model.queries, model.attention_batch_norm
        )
        self.heads = self.class_heads(variant, C)

    def forward(self, images: Tensor) -> Outputs:
        maps, _, h = self.attributes(self.backbone(images))
        return Outputs(unit(h), logits=self.heads(h) if self.heads else None, attribute_maps=maps)


class ASENpp(System):
    """ASEN++ (TIP 2021): a global branch says where to look, and a local branch looks there at full resolution.

    The global branch is ASEN_v2's block with an output layer (model.attention_batch_norm: released without). The local
    branch has a backbone and a block of its own and shares the attribute table. What it reads is cropped from the
    images as stored, which are larger than what the global backbone reads where model.input_scale < 1. Retrieval uses
    beta cos(g, g') + (1 - beta) cos(l, l'), the product of concatenated sqrt(beta) g and sqrt(1 - beta) l.

    The local branch joins with the first stage that weighs loss.asen_pp_local or loss.asen_pp_align. Its backbone then
    starts from ImageNet in the paper; where there are no such weights, model.local_from_global starts it from the
    global one.
    """

    outputs = {"attribute", "local"}
    losses = {"asen_triplet", "asen_pp_local", "asen_pp_align", "m3_classification"}
    settings = {
        "attention_width",
        "queries",
        "attention_batch_norm",
        "attribute_embedding",
        "box_threshold",
        "beta",
        "local_backbone",
        "local_backbone_options",
        "local_weights",
        "local_from_global",
        "local_attention_width",
        "local_size",
    }

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__(variant, taxonomy)
        C, model = self.backbone.channels, variant.model
        self.attributes = AttributeAttention(
            C, taxonomy.num_attributes, model.attention_width, model.queries, model.attention_batch_norm
        )
        self.output = nn.Linear(C, model.attribute_embedding)
        self.local_backbone = Backbone(
            model.local_backbone,
            model.local_backbone_options,
            model.pretrained,
            model.local_weights,
            prefix="local_",
        )
        c, width = self.local_backbone.channels, self.attributes.table.width
        self.local_spatial = SpatialAttention(c, model.local_attention_width, width, model.attention_batch_norm)
        self.local_channel = ChannelAttention(c, model.attention_width, width, squeeze=model.local_attention_width // 2)
        self.local_output = nn.Linear(c, model.attribute_embedding)
        self.heads = self.class_heads(variant, model.attribute_embedding)
        self.register_buffer("joined", torch.tensor(False))  # in the state: a resumed run goes on with both branches
        self.from_global, self.threshold, self.beta = model.local_from_global, model.box_threshold, model.beta
        self.size = model.input_scale * model.local_size  # of the local branch's input, as a share of the stored side

    def enter_stage(self, loss: Loss) -> None:
        if (loss.asen_pp_local or loss.asen_pp_align) and not self.joined:
            if self.from_global:
                copy_trunk(self.backbone, self.local_backbone)
            self.joined.fill_(True)

    def local_parameters(self) -> list[nn.Parameter]:
        parts = (self.local_backbone, self.local_spatial, self.local_channel, self.local_output)
        return [parameter for part in parts for parameter in part.parameters()]

    def stored_attribute(self, outputs: Outputs) -> Tensor:
        if outputs.local is None:
            return outputs.attribute
        return torch.cat([self.beta**0.5 * outputs.attribute, (1 - self.beta) ** 0.5 * outputs.local], dim=2)

    def forward(self, images: Tensor) -> Outputs:
        features = self.backbone.features(images)  # (B, C, rows, columns)
        maps, _, h = self.attributes(features.flatten(2).mT)
        g = self.output(h)  # (B, N, D)
        local = unit(self.look(images, maps.detach().unflatten(2, features.shape[2:]))) if self.joined else None
        return Outputs(unit(g), local, self.heads(g) if self.heads else None, attribute_maps=maps)

    def look(self, images: Tensor, maps: Tensor) -> Tensor:
        """(B, N, D) of the local branch: every attribute's region of every image, cut out and embedded.

        maps: (B, N, rows, columns). What is read of a region is a square, as the region is where the image allows.
        """
        size, num_attributes = maps.shape[:2]
        regions = find_regions(maps.flatten(0, 1), images.shape[2:], self.threshold)  # (B * N, 4)
        side = max(STRIDE, round(self.size * min(images.shape[2:])))
        x = self.local_backbone(crop(images.repeat_interleave(num_attributes, 0), regions, (side, side)))  # (B N, p, c)
        rows = self.attributes.table.rows
        # each crop is asked for its own attribute alone: keys once, one query a crop
        keys = self.local_spatial.keys(x).unflatten(0, (size, num_attributes))  # (B, N, p, h)
        logits = (keys * self.local_spatial.queries(rows)[:, None]).sum(dim=3)  # (B, N, p)
        weights = logits.float().softmax(dim=-1).to(x.dtype)
        z = (weights[..., None] * x.unflatten(0, (size, num_attributes))).sum(dim=2)  # (B, N, c)
        return self.local_output(z * self.local_channel(z, rows))


def find_regions(maps: Tensor, sides: tuple[int, int], threshold: float) -> Tensor:
    """(K, 4) float: top, left, height and width, in pixels, of where each attention map (K, rows, columns) is strong.

    As ASEN++'s code: the map is enlarged to the image, brought to [0, 1] by its own minimum and maximum, rounded down
    to 8 bit, and cut at > 255 threshold; the box around what is left becomes a square of its longer side around the
    same centre, moved to lie inside the image (cut to the image where it is larger). A constant map, for which
    that would divide by zero, keeps the whole image.
    """
    H, W = sides
    large = F.interpolate(maps[:, None].float(), (H, W), mode="bilinear", align_corners=False)[:, 0]  # (K, H, W)
    low, high = large.amin(dim=(1, 2), keepdim=True), large.amax(dim=(1, 2), keepdim=True)
    level = ((large - low) / (high - low).clamp(min=1e-12) * 255).floor()
    strong = (level > 255 * threshold) | (high - low < 1e-12)  # (K, H, W)
    top, height = extent(strong.any(dim=2))
    left, width = extent(strong.any(dim=1))
    side = torch.maximum(height, width)  # (K,)
    tall, wide = side.clamp(max=H), side.clamp(max=W)
    top = torch.minimum((top + height / 2 - tall / 2).clamp(min=0), H - tall)
    left = torch.minimum((left + width / 2 - wide / 2).clamp(min=0), W - wide)
    return torch.stack([top, left, tall, wide], dim=1)


def extent(present: Tensor) -> tuple[Tensor, Tensor]:
    """First index and length, (K,) float each, of the span from the first to the last True of each row (K, L)."""
    flags = present.int()
    first = flags.argmax(dim=1)
    last = present.shape[1] - 1 - flags.flip(1).argmax(dim=1)
    return first.float(), (last - first + 1).float()


def crop(images: Tensor, regions: Tensor, sides: tuple[int, int]) -> Tensor:
    """(K, 3, h, w): each region (top, left, height, width) of its image (K, 3, H, W), resized bilinearly."""
    H, W = images.shape[2:]
    top, left, tall, wide = regions.T[:, :, None]  # (K, 1) each
    rows = top + (torch.arange(sides[0], device=images.device) + 0.5) / sides[0] * tall  # (K, h), pixel coordinates
    columns = left + (torch.arange(sides[1], device=images.device) + 0.5) / sides[1] * wide  # (K, w)
    x = (2 * columns / W - 1)[:, None, :].expand(-1, sides[0], -1)
    y = (2 * rows / H - 1)[:, :, None].expand(-1, -1, sides[1])
    grid = torch.stack([x, y], dim=3).to(images.dtype)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
