"""The peers' side: the networks of `unet2d` and `unet3d` in plain PyTorch, and MONAI's network of the same blocks."""

import torch
from torch import nn


class UNet(nn.Module):
    """The networks `unet2d` and `unet3d`, layer by layer, channels first: `(B, 1, *P)` to logits `(B, K, *P)`."""

    def __init__(self, rank: int, base_filters: int, num_classes: int) -> None:
        super().__init__()
        names = ("Conv", "ConvTranspose", "BatchNorm", "MaxPool")
        convolution, transposed, norm, pool = (getattr(nn, f"{name}{rank}d") for name in names)

        def block(channels: int, first: int, second: int) -> nn.Module:
            layers = []
            for before, after in ((channels, first), (first, second)):
                layers += [convolution(before, after, 3, padding=1, bias=False), norm(after), nn.ReLU(inplace=True)]
            return nn.Sequential(*layers)

        def sizes(level: int) -> tuple[int, int]:
            filters = base_filters * 2**level
            return (filters, filters) if rank == 2 else (filters, 2 * filters)

        depth = 4 if rank == 2 else 3
        self.down, self.up, self.merge = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.pool = pool(2)
        channels, skips = 1, []
        for level in range(depth):
            self.down.append(block(channels, *sizes(level)))
            channels = sizes(level)[1]
            skips.append(channels)
        self.bottom = block(channels, *sizes(depth))
        channels = sizes(depth)[1]
        for skip in reversed(skips):
            raised = skip if rank == 2 else channels
            self.up.append(transposed(channels, raised, 2, 2, bias=rank == 2))
            self.merge.append(block(raised + skip, skip, skip))
            channels = skip
        self.logits = convolution(channels, num_classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Computes logits from images."""
        skips, x = [], image
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = self.pool(x)
        x = self.bottom(x)
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat((skips.pop(), up(x)), 1))
        return self.logits(x)


def build_monai(rank: int, base_filters: int, num_classes: int) -> nn.Module:
    """Builds MONAI's DynUNet with two convolutions a block and batch norm: in 2-D the multiplications of `UNet`, in 3-D nearly."""
    from monai.networks.nets import DynUNet

    levels = 5 if rank == 2 else 4
    filters = [base_filters * 2 ** (level + (rank == 3)) for level in range(levels)]
    return DynUNet(
        spatial_dims=rank,
        in_channels=1,
        out_channels=num_classes,
        kernel_size=[3] * levels,
        strides=[1] + [2] * (levels - 1),
        upsample_kernel_size=[2] * (levels - 1),
        filters=filters,
        norm_name="batch",
        act_name="relu",
    )


def build(peer: str, rank: int, base_filters: int, num_classes: int) -> nn.Module:
    """Builds the network of "torch", "torch compiled" or "monai", in channels-last memory, which is PyTorch's fastest."""
    torch.manual_seed(42)
    network = build_monai(rank, base_filters, num_classes) if peer == "monai" else UNet(rank, base_filters, num_classes)
    return network.to(memory_format=torch.channels_last if rank == 2 else torch.channels_last_3d)
