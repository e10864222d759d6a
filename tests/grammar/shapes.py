"""Axes of equal size, in-place operations, and operations that move channels about."""

from __future__ import annotations

from tests.grammar.piece import pieces

SQUARE, BATCH = frozenset({"square"}), frozenset({"batch"})
_FRONT = "self.conv@, self.norm@ = nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c)"

SHAPES = pieces(
    "reshapes",
    {
        "name": "equal_axes",
        "weight": 3,
        "tags": SQUARE,
        "init": "self.stem@, self.conv@, self.norm@ = nn.Conv2d($c, 6, 1), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)",
        "out": "6",
        "forward": "x = self.stem@(x)<<|.relu()>>\n"
        "x = <<x.transpose(1, 2)|x.permute(0, 3, 2, 1)|x.swapaxes(1, 3)|x.movedim(1, 2)|x.transpose(-1, -3)"
        "|x.reshape(x.shape[0], 6, 6, 6).transpose(1, 3)|torch.einsum('nchw->nhwc', x)|x.mT|x.rot90(1, (1, 2))"
        "|x.unflatten(1, (1, 6)).squeeze(1)>>\n"
        "x = <<self.norm@(x)|self.norm@(self.conv@(x))|self.conv@(self.norm@(x))>>",
    },
    {
        "name": "same_rank_view",
        "weight": 3,
        "init": _FRONT + "\nself.next@ = nn.Conv2d($c, $c, 1)",
        "forward": "n, c, h, w = x.shape\ny = self.norm@(self.conv@(x).relu())\n"
        "x = self.next@(y.<<reshape|view>>(<<n, h * w, c, 1|n, h, w, c|n, c, w, h|n, c, h * w, 1|n, c, 1, h * w"
        "|n * h, c, w, 1>>).reshape(<<n, c, h, w|y.shape|-1, c, h, w>>))",
    },
    {
        "name": "batch_of_channels",
        "tags": BATCH,
        "init": _FRONT + "\nself.next@ = nn.Conv2d(4, 4, 1)",
        "forward": "y = self.norm@(self.conv@(x))\n"
        "x = self.next@(y.<<transpose(0, 1)|reshape(y.shape[1], 4, *y.shape[2:])|permute(1, 0, 2, 3)>>)"
        ".transpose(0, 1)",
    },
    {
        "name": "roll",
        "weight": 2,
        "init": _FRONT + "\nself.next@ = nn.Conv2d($c, $c, 1)",
        "forward": "x = self.next@(torch.roll(self.norm@(self.conv@(x)), <<1|1, 1|1, 2|(1, 2), (1, 3)|2, -3|(0, 1), (2, 1)"
        ">>))",
    },
    {
        "name": "flip",
        "init": _FRONT + "\nself.next@ = nn.Conv2d($c, $c, 1)",
        "forward": "x = self.next@(self.norm@(self.conv@(x)).flip(<<1|2|(1, 3)|-3|(2, 3)>>))",
    },
    {
        "name": "groups_in_batch",
        "weight": 2,
        "init": _FRONT + "\nself.part@ = nn.BatchNorm2d($c // 2)",
        "forward": "n, c, h, w = x.shape\ny = self.norm@(self.conv@(x)).reshape(n * 2, c // 2, h, w)\n"
        "y = <<self.part@(y)|y * y.mean((2, 3), keepdim=True).sigmoid()|F.group_norm(y, 1)>>\nx = y.reshape(n, c, h, w)",
    },
    {
        "name": "windows_in_batch",
        "tags": SQUARE,
        "init": _FRONT + "\nself.part@ = nn.BatchNorm2d($c)",
        "forward": "n, c, h, w = x.shape\ny = self.norm@(self.conv@(x)).reshape(n, c, 2, 3, 2, 3)\n"
        "y = self.part@(y.permute(0, 2, 4, 1, 3, 5).reshape(n * 4, c, 3, 3))\n"
        "x = y.reshape(n, 2, 2, c, 3, 3).permute(0, 3, 1, 4, 2, 5).reshape(n, c, h, w)",
    },
    {
        "name": "kernel_per_image",
        "init": _FRONT + "\nself.kernel@ = nn.Linear($c, $c * 9)",
        "forward": "n, c, h, w = x.shape\ny = self.norm@(self.conv@(x))\n"
        "k = self.kernel@(y.mean((2, 3))).reshape(n * c, 1, 3, 3)\n"
        "x = F.conv2d(y.reshape(1, n * c, h, w), k, padding=1, groups=n * c).reshape(n, c, h, w)",
    },
    {
        "name": "shuffle",
        "init": _FRONT + "\nself.next@ = nn.Conv2d($c, $c, 1)",
        "forward": "n, c, h, w = x.shape\ny = self.norm@(self.conv@(x))\n"
        "x = self.next@(<<F.channel_shuffle(y, 2)|y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)"
        "|y.reshape(n, 2, c // 2, h, w).flip(1).flatten(1, 2)>>)",
    },
    {
        "name": "pixel_shuffle",
        "init": "self.conv@, self.norm@ = nn.Conv2d($c, 4 * $c, 1), nn.BatchNorm2d(4 * $c)",
        "forward": "x = F.avg_pool2d(F.pixel_shuffle(self.norm@(self.conv@(x)), 2), 2)",
    },
    {
        "name": "pixel_unshuffle",
        "init": "self.conv@, self.norm@ = nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c)\nself.next@ = nn.Conv2d(4 * $c, $c, 1)",
        "forward": "y = F.pixel_unshuffle(self.norm@(self.conv@(x)), 2)\n"
        "x = F.interpolate(self.next@(y), size=x.shape[2:])",
    },
    {
        "name": "split_and_joined",
        "weight": 2,
        "init": _FRONT + "\nself.half@ = nn.BatchNorm2d($c // 2)\nself.next@ = nn.Conv2d($c, $c, 1)",
        "forward": "a, b = <<self.norm@(self.conv@(x)).chunk(2, 1)|torch.split(self.norm@(self.conv@(x)), $c // 2, 1)"
        "|(lambda y: (y[:, ::2], y[:, 1::2]))(self.norm@(self.conv@(x)))|self.norm@(self.conv@(x)).unflatten(1, (2, -1))"
        ".unbind(1)>>\nx = self.next@(torch.cat([<<self.half@(a), b|b, a|a.relu(), self.half@(b)|b.flip(1), a>>], 1))",
    },
    {
        "name": "shuffled_halves",
        "init": _FRONT + "\nself.half@, self.next@ = nn.BatchNorm2d($c // 2), nn.<<Conv2d($c, $c, 1)|BatchNorm2d($c)"
        "|GroupNorm(2, $c)>>",
        "forward": "n, c, h, w = x.shape\na, b = self.norm@(self.conv@(x)).chunk(2, 1)\n"
        "y = torch.cat([<<a, self.half@(b)|self.half@(b), a|self.half@(a).relu(), b|a, b, self.half@(b)>>], 1)[:, :c]\n"
        "x = self.next@(<<F.channel_shuffle(y, 2)|y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)"
        "|y.reshape(n, c, h * w).reshape(n, c, h, w)|y.unflatten(1, (2, -1)).flatten(1, 2)>>)",
    },
    {
        "name": "unfolded",
        "init": _FRONT + "\nself.lin@ = nn.Linear(9 * $c, $c)",
        "forward": "n, c, h, w = x.shape\ncolumns = F.unfold(self.norm@(self.conv@(x)), 3, padding=1)\n"
        "x = self.lin@(columns.transpose(1, 2)).transpose(1, 2).reshape(n, c, h, w)",
    },
    {
        "name": "across_channels",
        "weight": 2,
        "init": _FRONT + "\nself.next@ = nn.Conv2d($c, $c, 1)",
        "forward": "y = self.norm@(self.conv@(x))\nx = self.next@(<<y.cumsum(1)|y.softmax(1)|y - y.mean(1, keepdim=True)"
        "|y / (1 + y.norm(dim=1, keepdim=True))|torch.maximum(y, y.roll(1, 1))|y.amax(1, keepdim=True) - y|y.diff(dim=1, "
        "prepend=y[:, :1])|F.local_response_norm(y, 3)|F.normalize(y, dim=1)|F.pad(y, (0, 0, 0, 0, 1, 0))[:, :-1]"
        "|torch.index_select(y, 1, torch.arange(y.shape[1] - 1, -1, -1))>>)",
    },
    {
        "name": "einsum",
        "init": "self.norm@, self.mix@ = nn.BatchNorm2d($c), nn.Parameter(torch.randn($c, $c))",
        "forward": "x = <<torch.einsum('nchw,cd->ndhw', self.norm@(x), self.mix@)|torch.tensordot(self.norm@(x), self.mix@, "
        "([1], [0])).permute(0, 3, 1, 2)|(self.norm@(x).flatten(2).mT @@ self.mix@).mT.reshape(x.shape)>>",
    },
    {
        "name": "linear_over_positions",
        "tags": SQUARE,
        "init": "self.norm@, self.lin@ = nn.BatchNorm2d($c), nn.Linear(36, 36)",
        "forward": "x = x + self.lin@(self.norm@(x).flatten(2)).reshape(x.shape)",
    },
    {
        "name": "linear_last",
        "init": "self.ln@, self.lin@ = nn.LayerNorm($c), nn.Linear($c, $o)",
        "forward": "x = self.lin@(self.ln@(x.permute(0, 2, 3, 1))).<<permute(0, 3, 1, 2)|movedim(-1, 1)>>",
    },
    {
        "name": "conv1d_tokens",
        "init": "self.conv@, self.norm@ = nn.Conv1d($c, $c, 3, padding=1), nn.BatchNorm1d($c)",
        "forward": "x = self.norm@(self.conv@(x.flatten(2))).unflatten(2, x.shape[2:])",
    },
    {
        "name": "conv3d_frames",
        "init": "self.conv@, self.norm@ = nn.Conv3d($c, $c, (1, 3, 3), padding=(0, 1, 1)), nn.BatchNorm3d($c)",
        "forward": "x = <<self.norm@(self.conv@(x[:, :, None]))[:, :, 0]|self.norm@(self.conv@(x.unsqueeze(2))).squeeze(2)"
        "|self.norm@(self.conv@(torch.stack([x, 2 * x], 2))).mean(2)>>",
    },
)

IN_PLACE = pieces(
    "in place",
    {
        "name": "in_place_arithmetic",
        "weight": 2,
        "init": _FRONT,
        "forward": "y = <<self.norm@(self.conv@(x))|self.conv@(x)>>\n<<y.mul_(2)|y += x|y.add_(1).relu_()|y.clamp_(-1, 1)"
        "|y[:, 0] = 0|y[:, ::2].mul_(3)|y.view(-1)[::2] *= 2|y[y < 0] = 0.1|y.copy_(x + y)|F.relu(y, inplace=True)"
        "|y.transpose(0, 1)[0].zero_()|torch.add(y, x, out=y)|y.detach().mul_(2)|y.data.add_(1)"
        "|y.index_fill_(1, torch.tensor([1]), 0.5)|y.masked_fill_(y > 1, 1.0)>>\nx = y + <<0|x|self.norm@(x)>>",
    },
    {
        "name": "in_place_after_norm",
        "init": _FRONT + "\nself.act@ = nn.ReLU(inplace=True)",
        "forward": "y = self.conv@(x)\nz = self.act@(y) if <<True|False>> else y.mul(1)\nx = self.norm@(y) + z",
    },
    {
        "name": "in_place_view_before_norm",
        "init": _FRONT,
        "forward": "y = self.conv@(x)\nview = y.flatten(2)\nview<<.mul_(0.5)|[:, 0] = 1|.add_(1)>>\nx = self.norm@(y)",
    },
    {
        "name": "index_put",
        "init": _FRONT,
        "forward": "y = torch.zeros_like(x)\ny[:, <<:|::2|[0, 1]|-1:>>] = self.norm@(self.conv@(x))[:, <<|>>0:1]\nx = y + x",
    },
    {
        "name": "input_written",
        "weight": 0.7,
        "init": _FRONT,
        "forward": "z = x\nz<<.mul_(0.5)|.add_(1)|[:, 0] = 0>>\nx = self.norm@(self.conv@(z))",
    },
)
