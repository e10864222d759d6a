"""Ordinary layers: what most of every network is made of."""

from __future__ import annotations

from tests.grammar.piece import pieces

ACT = "<<|.relu()|.sigmoid()|.clamp(0, 6)|.abs()>>"
SAME = "x = F.<<relu|silu|gelu|hardswish|leaky_relu|softplus>>(x)"

PLAIN = pieces(
    "layers",
    {
        "name": "conv_norm",
        "weight": 8,
        "init": "self.conv@ = nn.Conv2d($c, $o, <<3, padding=1|1|5, padding=2|3, padding=2, dilation=2|3, padding=1, "
        "padding_mode='reflect'>>, bias=<<True|False>>)\nself.norm@ = nn.BatchNorm2d($o)",
        "forward": "x = self.norm@(self.conv@(x))" + ACT,
    },
    {
        "name": "conv",
        "weight": 3,
        "init": "self.conv@ = nn.Conv2d($c, $o, 3, padding=1)",
        "forward": "x = self.conv@(x)" + ACT,
    },
    {
        "name": "depthwise",
        "weight": 2,
        "init": "self.conv@ = nn.Conv2d($c, $c, 3, padding=1, groups=<<$c|$g>>, bias=<<True|False>>)\n"
        "self.norm@ = nn.BatchNorm2d($c)",
        "forward": "x = self.norm@(self.conv@(x))" + ACT,
    },
    {
        "name": "transposed",
        "init": "self.conv@ = nn.ConvTranspose2d($c, $o, 3, padding=1)\nself.norm@ = nn.BatchNorm2d($o)",
        "forward": "x = self.norm@(self.conv@(x))" + ACT,
    },
    {
        "name": "preactivated",
        "weight": 3,
        "init": "self.norm@ = nn.BatchNorm2d($c)\nself.conv@ = nn.Conv2d($c, $o, <<1|3, padding=1>>)",
        "forward": "x = self.conv@(self.norm@(x)<<|.relu()>>)",
    },
    {
        "name": "residual",
        "weight": 8,
        "init": "self.block@ = Residual($c)",
        "helpers": """
class Residual(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)
        self.conv2, self.norm2 = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)

    def forward(self, x):
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
""",
        "forward": "x = self.block@(x)",
    },
    {
        "name": "residual_inline",
        "weight": 3,
        "init": "self.conv@ = nn.Conv2d($c, $c, 1)\nself.norm@ = <<nn.BatchNorm2d($c)|nn.GroupNorm($g, $c)"
        "|nn.InstanceNorm2d($c, affine=True)>>",
        "forward": "x = <<x + self.norm@(self.conv@(x))|torch.add(self.norm@(self.conv@(x)), x)"
        "|torch.stack([x, self.norm@(self.conv@(x))]).sum(0)|sum([x, self.norm@(self.conv@(x))])>>",
    },
    {
        "name": "convnext_block",
        "weight": 2,
        "init": "self.block@ = ConvNextBlock($c)",
        "helpers": """
class ConvNextBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(c, c, 3, padding=1, groups=c), nn.LayerNorm(c)
        self.fc1, self.fc2 = nn.Linear(c, 2 * c), nn.Linear(2 * c, c)
        self.gamma = nn.Parameter(torch.ones(c))

    def forward(self, x):
        y = self.norm(self.conv(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.fc2(F.gelu(self.fc1(y)))).permute(0, 3, 1, 2)
""",
        "forward": "x = self.block@(x)",
    },
    {
        "name": "layer_scale",
        "weight": 2,
        "init": "self.gain@ = nn.Parameter(torch.ones(<<$c, 1, 1|1, $c, 1, 1|1|()>>))\n"
        "self.conv@ = nn.Conv2d($c, $c, 1)",
        "forward": "x = <<x + >><<self.gain@ * self.conv@(x)|self.conv@(x).mul(self.gain@)"
        "|torch.multiply(self.conv@(x), self.gain@)|torch.addcmul(x, self.conv@(x), self.gain@)"
        "|self.conv@(x * self.gain@)>>",
    },
    {
        "name": "learned_addition",
        "init": "self.shift@ = nn.Parameter(torch.ones(<<$c, 1, 1|1, $c, 1, 1|1>>))\n"
        "self.conv@ = nn.Conv2d($c, $c, <<1|3, padding=1>>)",
        "forward": "x = <<self.conv@(x + self.shift@)|self.conv@(x) + self.shift@|torch.sub(self.conv@(x), self.shift@)>>",
    },
    {
        "name": "other_norm",
        "init": "self.norm@ = <<nn.GroupNorm($g, $c)|nn.InstanceNorm2d($c, affine=True)"
        "|nn.InstanceNorm2d($c, affine=True, track_running_stats=True)|nn.BatchNorm2d($c, affine=False)"
        "|nn.BatchNorm2d($c, eps=0.1)>>\nself.conv@ = nn.Conv2d($c, $o, 1)",
        "forward": "x = self.conv@(self.norm@(x))",
    },
    {"name": "activation", "weight": 2, "forward": SAME},
    {
        "name": "prelu",
        "init": "self.act@ = nn.PReLU(<<$c|1>>)\nself.conv@ = nn.Conv2d($c, $c, 1)",
        "forward": "x = self.act@(self.conv@(x))",
    },
    {
        "name": "dropout",
        "init": "self.drop@ = nn.<<Dropout|Dropout2d>>(0.5)\nself.norm@ = nn.BatchNorm2d($c)",
        "forward": "x = self.norm@(self.drop@(x))",
    },
    {
        "name": "pooling",
        "init": "self.norm@ = nn.BatchNorm2d($c)",
        "forward": "x = <<F.avg_pool2d(self.norm@(x), 3, 1, 1)|F.max_pool2d(self.norm@(x), 3, 1, 1)"
        "|F.avg_pool2d(self.norm@(x), 3, 1, 1, count_include_pad=False)"
        "|F.interpolate(F.avg_pool2d(self.norm@(x), 2), size=x.shape[2:], mode='<<nearest|bilinear>>')>>",
    },
    {
        "name": "own_block_with_fuse",
        "init": "self.block@ = TwoBranches($c)",
        "helpers": """
class TwoBranches(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.left, self.right, self.done = nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, c, 1), None

    def forward(self, x):
        return F.relu(self.done(x) if self.done is not None else self.left(x) + self.right(x))

    def <<fuse|switch_to_deploy|reparameterize>>(self):
        if self.done is None:
            done = nn.Conv2d(self.left.in_channels, self.left.out_channels, 3, padding=1).to(self.left.weight)
            done.weight.data = self.left.weight.data + F.pad(self.right.weight.data, [1, 1, 1, 1])
            done.bias.data = self.left.bias.data + self.right.bias.data
            self.done = done
            del self.left, self.right
""",
        "forward": "x = self.block@(x)",
    },
    {
        "name": "attention",
        "tags": frozenset({"reads"}),
        "init": "self.mha@, self.ln@ = nn.MultiheadAttention($c, 2, batch_first=True), nn.LayerNorm($c)",
        "forward": "t = self.ln@(x.flatten(2).transpose(1, 2))\n"
        "x = x + self.mha@(t, t, t, need_weights=False)[0].transpose(1, 2).reshape(x.shape)",
    },
    {
        "name": "recurrent",
        "weight": 0.5,
        "init": "self.lstm@, self.ln@ = nn.LSTM($c, $c, batch_first=True), nn.LayerNorm($c)",
        "forward": "x = x + self.ln@(self.lstm@(x.flatten(2).transpose(1, 2))[0]).transpose(1, 2).reshape(x.shape)",
    },
    {
        "name": "encoder_layer",
        "tags": frozenset({"reads"}),
        "weight": 0.5,
        "init": "self.encoder@ = nn.TransformerEncoderLayer($c, 2, 2 * $c, batch_first=True, "
        "norm_first=<<True|False>>)",
        "forward": "x = self.encoder@(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)",
    },
)
