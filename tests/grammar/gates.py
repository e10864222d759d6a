"""Channel gates in several spellings, and look-alikes that are none. ``tap`` marks the factor and gives it back."""

from __future__ import annotations

from tests.grammar.piece import pieces

_FRONT = "self.conv@, self.norm@ = nn.Conv2d($c, $c, 3, padding=1), nn.BatchNorm2d($c)\n"
_EXCITE = _FRONT + "self.fc1@, self.fc2@ = nn.Conv2d($c, 2, 1), nn.Conv2d(2, $c, 1)"
_SQUEEZE = (
    "<<y.mean((2, 3), keepdim=True)|F.adaptive_avg_pool2d(y, 1)|y.amax((2, 3), keepdim=True)"
    "|y.flatten(2).mean(-1)[..., None, None]|y.sum((2, 3), keepdim=True) / 36>>"
)
_VALUE = f"self.fc2@(F.relu(self.fc1@({_SQUEEZE})))"

GATES = pieces(
    "gates",
    {
        "name": "se_block",
        "weight": 5,
        "helpers": """
class SE(nn.Module):
    def __init__(self, c, name):
        super().__init__()
        self.fc1, self.fc2, self.name = nn.Conv2d(c, 2, 1), nn.Conv2d(2, c, 1), name

    def forward(self, x):
        s = self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * tap(self.name, s.sigmoid())
""",
        "init": _FRONT + "self.se@ = SE($c, 'gate@')",
        "forward": "x = <<|x + >>self.se@(self.norm@(self.conv@(x)))",
    },
    {
        "name": "excite_module",
        "weight": 3,
        "helpers": """
class Excite(nn.Module):
    def __init__(self, c, name):
        super().__init__()
        self.fc1, self.fc2, self.name = nn.Linear(c, 2), nn.Linear(2, c), name

    def forward(self, x):
        return tap(self.name, self.fc2(F.relu(self.fc1(x.mean((2, 3))))).sigmoid())[:, :, None, None]
""",
        "init": _FRONT + "self.excite@ = Excite($c, 'gate@')",
        "forward": "y = self.norm@(self.conv@(x))\nx = <<y * self.excite@(y)|self.excite@(y) * y|y.mul(self.excite@(y))"
        "|torch.mul(y, self.excite@(y))|x + y * self.excite@(x)|y * self.excite@(y).expand_as(y)>>",
    },
    {
        "name": "inline_gate",
        "weight": 3,
        "init": _EXCITE,
        "forward": f"y = self.norm@(self.conv@(x))\ng = tap('gate@', {_VALUE}<<.sigmoid()|.tanh()>>)\n"
        "x = <<y * g|g * y|y.mul_(g)|torch.mul(y, g, out=torch.empty_like(y))|torch.einsum('nchw,nc->nchw', y, g[..., 0, 0])"
        "|torch.addcmul(x, y, g)|y / (1 / g)|y * g.expand(-1, -1, *y.shape[2:])>>",
    },
    {
        "name": "residual_gate",
        "init": _EXCITE,
        "forward": f"y = self.norm@(self.conv@(x))\ng = {_VALUE}.tanh()\nx = y * tap('gate@', 1 + g)",
    },
    {
        "name": "hard_gate",
        "weight": 2,
        "init": _EXCITE,
        "forward": f"y = self.norm@(self.conv@(x))\ns = {_VALUE}\n"
        "x = y * tap('gate@', <<F.hardsigmoid(s)|F.relu6(s + 3) / 6|(s > 0).to(s.dtype)|torch.where(s > 0, 1.0, 0.25).to(s)"
        "|s.clamp(0, 1)|(s.sigmoid() > 0.5).double().to(s)|torch.heaviside(s, torch.zeros_like(s[:1]))>>)",
    },
    {
        "name": "mask_gate",
        "init": _EXCITE,
        "forward": f"y = self.norm@(self.conv@(x))\ns = {_VALUE}\nx = <<torch.where(s > 0, y, torch.zeros_like(y))"
        "|y.masked_fill(s < 0, 0.0)|torch.where(s > 0, y, 0.5 * y)>>",
    },
    {
        "name": "lerp_gate",
        "init": _EXCITE,
        "forward": f"y = self.norm@(self.conv@(x))\ng = {_VALUE}.sigmoid()\n"
        "x = <<torch.lerp(x, y, g)|x.lerp(y, g)|x + g * (y - x)|torch.lerp(torch.zeros_like(y), y, g)>>",
    },
    {
        "name": "film",
        "init": _FRONT + "self.film@ = nn.Linear($c, 2 * $c)",
        "forward": "y = self.norm@(self.conv@(x))\ng, b = self.film@(x.mean((2, 3)))[..., None, None].chunk(2, 1)\n"
        "x = y * tap('gate@', <<g|1 + g>>) + b",
    },
    {
        "name": "grouped_conv_gate",
        "init": _EXCITE,
        "forward": f"y = self.norm@(self.conv@(x))\ng = {_VALUE}.sigmoid()\nn, c, h, w = y.shape\n"
        "x = <<F.conv2d(y.reshape(1, n * c, h, w), g.reshape(n * c, 1, 1, 1), groups=n * c).reshape(n, c, h, w)"
        "|torch.bmm(torch.diag_embed(g[..., 0, 0]), y.flatten(2)).reshape(y.shape)"
        "|F.batch_norm(y, None, None, None, None, True) * 0 + y * g>>",
    },
    {
        "name": "selective_kernel",
        "init": _FRONT + "self.other@, self.pick@ = nn.Conv2d($c, $c, 1), nn.Linear($c, 2 * $c)",
        "forward": "a, b = self.norm@(self.conv@(x)), self.other@(x)\n"
        "g = tap('gate@', self.pick@((a + b).mean((2, 3))).reshape(len(x), 2, -1).softmax(1))[..., None, None]\n"
        "x = <<(torch.stack([a, b], 1) * g).sum(1)|a * g[:, 0] + b * g[:, 1]>>",
    },
    {
        "name": "numpy_gate",
        "weight": 0.7,
        "init": _EXCITE,
        "forward": f"y = self.norm@(self.conv@(x))\ng = {_VALUE}.sigmoid()\n"
        "x = y * <<torch.from_numpy(g.detach().numpy()).to(y)|torch.tensor(g.tolist()).to(y)"
        "|torch.as_tensor(g.detach().numpy() + 1).to(y)>>",
    },
    {
        "name": "two_gates",
        "init": _EXCITE + "\nself.fc3@ = nn.Conv2d($c, $c, 1)",
        "forward": f"y = self.norm@(self.conv@(x))\ny = y * tap('gate@a', {_VALUE}.sigmoid())\n"
        "x = y * tap('gate@b', self.fc3@(F.adaptive_avg_pool2d(y, 1)).sigmoid())",
    },
    {
        "name": "shared_gate",
        "helpers": """
class Shared(nn.Module):
    def __init__(self, c, name):
        super().__init__()
        self.fc, self.name = nn.Linear(c, c), name

    def forward(self, x):
        return x * tap(self.name, self.fc(x.mean((2, 3))).sigmoid()[..., None, None])
""",
        "init": _FRONT + "self.gate@ = Shared($c, 'gate@')",
        "forward": "x = self.gate@(self.norm@(self.conv@(self.gate@(x))))",
    },
    {
        "name": "gate_by_argument",
        "argument": "way@=True",
        "calls": ("Call(image(4), way@=False)",),
        "tags": frozenset({"bypass"}),
        "init": _FRONT + "self.fc@ = nn.Linear($c, $c)",
        "forward": "y = self.norm@(self.conv@(x))\n"
        "x = y * tap('gate@', self.fc@(y.mean((2, 3))).sigmoid()[..., None, None]) if way@ else y",
    },
    {
        "name": "spatial_gate",
        "init": _FRONT + "self.map@ = nn.Conv2d($c, 1, 1)",
        "forward": "y = self.norm@(self.conv@(x))\nx = y * tap('map@', self.map@(y).sigmoid())",
    },
    {
        "name": "grouped_gate",
        "init": _FRONT + "self.fc@ = nn.Linear($c // 2, $c // 2)",
        "forward": "y = self.norm@(self.conv@(x))\nn, c, h, w = y.shape\ny = y.reshape(n * 2, c // 2, h, w)\n"
        "x = (y * tap('gate@', self.fc@(y.mean((2, 3))).sigmoid())[..., None, None]).reshape(n, c, h, w)",
    },
)

NOT_GATES = pieces(
    "no gates",
    {
        "name": "normalised_by_hand",
        "weight": 4,
        "init": _FRONT,
        "forward": "y = self.norm@(self.conv@(x))\ns = <<y.std((2, 3), keepdim=True)|y.square().mean((2, 3), keepdim=True)"
        ".sqrt()|y.abs().mean((2, 3), keepdim=True)|y.var((2, 3), keepdim=True).sqrt()|y.abs().amax((2, 3), keepdim=True)"
        "|y.norm(dim=(2, 3), keepdim=True)>> + 0.1\n"
        "x = <<y / s|y * tap('norm@', s.reciprocal())|y * tap('norm@', s.pow(-1))|y * tap('norm@', 1 / s)"
        "|y * tap('norm@', torch.exp(-torch.log(s)))|y * tap('norm@', s.clamp(0.2, 9).reciprocal())"
        "|y * tap('norm@', s.square().rsqrt())|(y - y.mean((2, 3), keepdim=True)) * tap('norm@', 1 / s)"
        "|y * tap('norm@', s ** -1)|y * tap('norm@', torch.div(1.0, s))|y.div_(s)>>",
    },
    {
        "name": "response_normalised",
        "init": _FRONT + "self.gain@ = nn.Parameter(torch.ones($c, 1, 1))",
        "forward": "y = self.norm@(self.conv@(x))\ns = y.norm(dim=(2, 3), keepdim=True)\n"
        "x = y + self.gain@ * (y * (s / (s.mean(1, keepdim=True) + 0.1)))",
    },
    {
        "name": "gated_map",
        "init": "self.conv@ = nn.Conv2d($c, 2 * $c, 1)",
        "forward": "a, b = self.conv@(x).chunk(2, 1)\nx = <<a * tap('map@', b.sigmoid())|F.glu(torch.cat([a, b], 1), 1)|a * b"
        "|a * F.silu(b)>>",
    },
    {
        "name": "mixed_kernels",
        "init": "self.norm@, self.kernels@ = nn.BatchNorm2d($c), nn.Parameter(torch.randn(2, $c, $c, 1, 1))\n"
        "self.pick@ = nn.Linear($c, 2)",
        "forward": "y = self.norm@(x)\nn, c, h, w = y.shape\np = self.pick@(y.mean((2, 3))).softmax(1)\n"
        "k = (p[:, :, None, None, None, None] * self.kernels@).sum(1).reshape(n * c, c, 1, 1)\n"
        "x = F.conv2d(y.reshape(1, n * c, h, w), k, groups=n).reshape(n, c, h, w)",
    },
    {
        "name": "self_product",
        "init": _FRONT,
        "forward": "y = self.norm@(self.conv@(x))\nx = <<y * y|y.square()|y * tap('norm@', y.mean((1, 2, 3), keepdim=True)"
        ".sigmoid())|y * x>>",
    },
)
