"""Paths that one example does not take, shared layers, and parameters that are read and not called."""

from __future__ import annotations

from tests.grammar.piece import pieces

BYPASS = frozenset({"bypass"})

PATHS = pieces(
    "paths",
    {
        "name": "norm_by_argument",
        "weight": 2,
        "argument": "way@=<<0|1>>",
        "calls": ("Call(image(4), way@=0)", "Call(image(4), way@=1)"),
        "init": "self.conv@ = nn.Conv2d($c, $o, 3, padding=1)\n"
        "self.norms@ = nn.ModuleList([nn.BatchNorm2d($o), nn.BatchNorm2d($o)])",
        "forward": "x = self.norms@[way@](self.conv@(x))",
    },
    {
        "name": "conv_by_argument",
        "argument": "way@='a'",
        "calls": ("Call(image(4), way@='b')",),
        "init": "self.convs@ = nn.ModuleDict({'a': nn.Conv2d($c, $o, 1), 'b': nn.Conv2d($c, $o, 3, padding=1)})\n"
        "self.norm@ = nn.BatchNorm2d($o)",
        "forward": "x = self.norm@(self.convs@[way@](x)).relu()",
    },
    {
        "name": "head_by_argument",
        "argument": "way@=False",
        "calls": ("Call(image(4), way@=True)",),
        "init": "self.conv@, self.norm@ = nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c)\n"
        "self.side@ = nn.Conv2d($c, $c, 3, padding=1)",
        "forward": "y = self.conv@(x)\nx = self.side@(y) if way@ else self.norm@(y)",
    },
    {
        "name": "norm_by_attribute",
        "calls": ("Call(image(4), attributes={'domain@': 1})",),
        "init": "self.domain@, self.conv@ = 0, nn.Conv2d($c, $o, 3, padding=1)\n"
        "self.norms@ = nn.ModuleList([nn.BatchNorm2d($o), nn.<<BatchNorm2d|Identity>>(<<$o|$o>>)])",
        "forward": "x = self.norms@[self.domain@](self.conv@(x))",
    },
    {
        "name": "layer_by_batch_size",
        "calls": ("Call(image(2))", "Call(image(1))"),
        "init": "self.conv@, self.norm@ = nn.Conv2d($c, $o, 1), nn.BatchNorm2d($o)\nself.small@ = nn.GroupNorm(1, $o)",
        "forward": "y = self.conv@(x)\nx = self.norm@(y) if x.shape[0] > 2 else self.small@(y)",
    },
    {
        "name": "layer_by_size",
        "calls": ("Call(image(4, 8))",),
        "init": "self.conv@, self.norm@ = nn.Conv2d($c, $o, 1), nn.BatchNorm2d($o)\n"
        "self.large@ = nn.Conv2d($o, $o, 3, padding=1)",
        "forward": "y = self.conv@(x)\nx = self.norm@(y) if x.shape[-1] < 7 else self.large@(y)",
    },
    {
        "name": "layer_by_value",
        "weight": 2,
        "calls": ("Call(image(4) * 30 + 9)", "Call(image(4) * 0.01)", "Call(-30 * image(4))"),
        "init": "self.conv@ = nn.Conv2d($c, $o, 1)\n"
        "self.norms@ = nn.ModuleList([nn.BatchNorm2d($o), nn.BatchNorm2d($o), nn.Conv2d($o, $o, 1)])",
        "forward": "y = self.conv@(x)\n"
        "x = self.norms@[<<int(x.mean() > 0.1) + int(x.amax() > 4)|0 if float(x.std()) < 2 else 2"
        "|min(2, int(x.abs().mean().item()))|1 if (x > 3).any() else 0>>](y)",
    },
    {
        "name": "bypass_by_argument",
        "tags": BYPASS,
        "argument": "way@=True",
        "calls": ("Call(image(4), way@=False)",),
        "init": "self.conv@, self.norm@ = nn.Conv2d($c, $o, 1), nn.BatchNorm2d($o)",
        "forward": "x = self.conv@(x)\nif way@:\n    x = self.norm@(x)",
    },
    {
        "name": "bypass_by_value",
        "tags": BYPASS,
        "calls": ("Call(image(4) * 30)",),
        "init": "self.conv@, self.norm@ = nn.Conv2d($c, $o, 1), nn.BatchNorm2d($o)",
        "forward": "x = self.conv@(x)\nif x.abs().amax() < 9:\n    x = self.norm@(x)",
    },
    {
        "name": "early_exit",
        "argument": "depth@=2",
        "calls": ("Call(image(4), depth@=1)", "Call(image(4), depth@=0)"),
        "tags": BYPASS,
        "init": "self.stages@ = nn.ModuleList([nn.Sequential(nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c)) "
        "for _ in range(2)])\nself.exit@ = nn.BatchNorm2d($c)",
        "forward": "for stage in self.stages@[:depth@]:\n    x = stage(x)\nx = self.exit@(x)",
    },
    {
        "name": "path_by_count",
        "init": "self.count@, self.conv@ = 0, nn.Conv2d($c, $o, 1)\n"
        "self.norms@ = nn.ModuleList([nn.BatchNorm2d($o), nn.BatchNorm2d($o)])",
        "forward": "self.count@ += 1\nx = self.norms@[self.count@ % 2](self.conv@(x))",
    },
    {
        "name": "path_by_training",
        "init": "self.conv@, self.norm@ = nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c)\nself.aux@ = nn.Conv2d($c, $c, 1)",
        "forward": "y = self.conv@(x)\nif self.training:\n    y = y + self.aux@(y)\nx = self.norm@(y)",
    },
    {
        "name": "path_by_try",
        "argument": "way@=None",
        "calls": ("Call(image(4), way@=1)",),
        "init": "self.conv@ = nn.Conv2d($c, $o, 1)\nself.norms@ = nn.ModuleList([nn.BatchNorm2d($o), "
        "nn.BatchNorm2d($o)])",
        "forward": "y = self.conv@(x)\ntry:\n    x = self.norms@[way@](y)\nexcept TypeError:\n    x = self.norms@[0](y)",
    },
    {
        "name": "path_by_tensor_argument",
        "argument": "which@=torch.tensor(0)",
        "calls": ("Call(image(4), which@=torch.tensor(1))",),
        "init": "self.conv@ = nn.Conv2d($c, $o, 1)\nself.norms@ = nn.ModuleList([nn.BatchNorm2d($o), "
        "nn.BatchNorm2d($o)])",
        "forward": "x = self.norms@[int(which@)](self.conv@(x))",
    },
)

SHARED = pieces(
    "shared layers",
    {
        "name": "conv_called_twice",
        "init": "self.conv@, self.norm@ = nn.Conv2d($c, $c, 3, padding=1), nn.BatchNorm2d($c)",
        "forward": "x = self.norm@(self.conv@(x))\nx = <<self.conv@(x)|self.norm@(self.conv@(x))"
        "|x + self.conv@(x).relu()>>",
    },
    {
        "name": "norm_called_twice",
        "init": "self.conv@, self.norm@, self.next@ = nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c), nn.Conv2d($c, $c, 1)",
        "forward": "x = self.norm@(self.next@(self.norm@(self.conv@(x)).relu()))",
    },
    {
        "name": "two_names",
        "init": "self.conv@, self.norm@ = nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c)\n"
        "self.again@ = <<self.conv@|self.norm@>>\nself.block@ = nn.Sequential(self.conv@, self.norm@)",
        "forward": "x = self.block@(x) + self.again@(x)",
    },
    {
        "name": "tied_weight",
        "init": "self.conv@, self.norm@, self.next@ = nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c), nn.Conv2d($c, $c, 1)\n"
        "<<self.next@.weight = self.conv@.weight|self.next@.bias = self.conv@.bias"
        "|self.next@.weight.data = self.conv@.weight.data|self.next@.bias = self.norm@.bias>>",
        "forward": "x = self.next@(self.norm@(self.conv@(x)).relu())",
    },
    {
        "name": "in_a_list",
        "init": "self.norm@ = nn.BatchNorm2d($c)\nself.held@ = <<[self.norm@]|(self.norm@,)|{'norm': self.norm@}"
        "|Box(self.norm@)|deque([self.norm@])>>\nself.conv@ = nn.Conv2d($c, $c, 1)",
        "helpers": """
class Box:
    def __init__(self, norm):
        self.norm = norm

    def __iter__(self):
        yield self.norm
""",
        "forward": "for norm in (self.held@.values() if isinstance(self.held@, dict) else self.held@):\n"
        "    x = norm(self.conv@(x))",
    },
    {
        "name": "unregistered",
        "weight": 0.5,
        "init": "self.loose@ = [nn.BatchNorm2d($c).double().eval()]\nself.conv@ = nn.Conv2d($c, $c, 1)",
        "forward": "x = self.loose@[0].to(x.dtype)(self.conv@(x))",
    },
    {
        "name": "closure_over_self",
        "weight": 0.5,
        "init": "self.conv@, self.norm@ = nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c)\n"
        "self.run@ = <<lambda x: self.norm@(self.conv@(x))|functools.partial(lambda f, x: self.norm@(f(x)), self.conv@)"
        "|self.norm@.forward>>",
        "forward": "x = self.run@(x)",
    },
)

READ = pieces(
    "parameters read",
    {
        "name": "gain_as_number",
        "tags": frozenset({"reads"}),
        "init": "self.conv@, self.gain@ = nn.Conv2d($c, $c, 1), nn.Parameter(torch.tensor([1.7]))",
        "calls": ("Call(9 * image(4))",),
        "forward": "x = torch.clamp(self.conv@(x) * self.gain@, max=4 * <<self.gain@.item()|float(self.gain@)"
        "|self.gain@.tolist()[0]|self.gain@.detach().numpy()[0].item()>>)",
    },
    {
        "name": "bias_as_number",
        "tags": frozenset({"reads"}),
        "init": "self.conv@, self.norm@ = nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c)",
        "forward": "x = self.norm@(self.conv@(x)) * (1 + abs(<<self.conv@.bias[0].item()|float(self.norm@.weight.max())"
        "|self.norm@.running_mean.tolist()[0]|float(self.conv@.weight.abs().mean())"
        "|self.norm@.bias.detach().numpy().sum().item()>>))",
    },
    {
        "name": "path_by_parameter",
        "tags": frozenset({"reads"}),
        "init": "self.conv@, self.norm@, self.next@ = nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c), nn.Conv2d($c, $c, 1)",
        "forward": "x = self.norm@(self.conv@(x))\nif <<self.norm@.weight[0] > 0.3|self.norm@.bias.abs().mean() > 0.1"
        "|bool(self.conv@.weight.mean() > 0)|self.norm@.running_var.max().item() > 1.5>>:\n    x = self.next@(x)",
    },
    {
        "name": "weight_as_tensor",
        "tags": frozenset({"reads"}),
        "init": "self.conv@, self.norm@ = nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c)",
        "forward": "x = self.norm@(self.conv@(x)) + <<self.conv@.weight.square().mean()|self.norm@.weight.view(-1, 1, 1)"
        "|self.norm@.running_var.sqrt().view(1, -1, 1, 1)|self.conv@.bias.sum()|0.1 * self.norm@.bias.norm()>>",
    },
    {
        "name": "weight_without_call",
        "tags": frozenset({"reads"}),
        "init": "self.conv@, self.norm@ = nn.Conv2d($c, $c, 3, padding=1), nn.BatchNorm2d($c)",
        "forward": "x = <<F.conv2d(x, self.conv@.weight, self.conv@.bias, padding=1)"
        "|self.conv@._conv_forward(x, self.conv@.weight, self.conv@.bias)|F.conv2d(x, self.conv@.weight * 2, padding=1)>>"
        "\nx = <<self.norm@(x)|F.batch_norm(x, self.norm@.running_mean, self.norm@.running_var, self.norm@.weight, "
        "self.norm@.bias)>>",
    },
    {
        "name": "isinstance_walk",
        "weight": 2,
        "init": "self.part@ = nn.Sequential(nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c), nn.ReLU(), nn.Conv2d($c, $c, 1), "
        "nn.BatchNorm2d($c))",
        "forward": "<<for layer in self.part@:\n    if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d)):\n        x = layer(x)"
        "|for layer in self.part@:\n    if type(layer) in (nn.Conv2d, nn.BatchNorm2d):\n        x = layer(x)"
        "|for layer in self.part@:\n    if 'Norm' in type(layer).__name__ or hasattr(layer, 'kernel_size'):\n"
        "        x = layer(x)"
        "|for layer in self.part@:\n    match layer:\n        case nn.BatchNorm2d():\n            x = layer(x)\n"
        "        case nn.Conv2d():\n            x = layer(x)>>",
    },
    {
        "name": "isinstance_reads",
        "tags": frozenset({"reads"}),
        "init": "self.part@ = nn.Sequential(nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c), nn.ReLU())",
        "forward": "for layer in self.part@:\n    if isinstance(layer, nn.BatchNorm2d):\n        x = F.batch_norm(x, "
        "layer.running_mean, layer.running_var, layer.weight, layer.bias)\n    else:\n        x = layer(x)",
    },
    {
        "name": "isinstance_inside_residual",
        "init": "self.part@ = nn.Sequential(nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c))",
        "forward": "y = x\nfor layer in self.part@.modules():\n    if <<isinstance(layer, nn.Conv2d)|hasattr(layer, "
        "'stride')>> or <<isinstance(layer, nn.BatchNorm2d)|hasattr(layer, 'running_var')>>:\n        y = layer(y)\n"
        "x = x + y",
    },
    {
        "name": "parametrized",
        "init": "self.conv@ = torch.nn.utils.parametrizations.<<weight_norm|spectral_norm>>(nn.Conv2d($c, $c, 1))\n"
        "self.norm@ = nn.BatchNorm2d($c)",
        "forward": "x = self.norm@(self.conv@(x))",
    },
)
