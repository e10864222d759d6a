"""Unusual ways to call and hold modules, and draws of random numbers."""

from __future__ import annotations

from tests.grammar.piece import pieces

_FRONT = "self.conv@, self.norm@ = nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c)"
READS = frozenset({"reads"})

USES = pieces(
    "uses of modules",
    {
        "name": "sliced_sequential",
        "init": "self.part@ = nn.Sequential(nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c), nn.ReLU(), nn.Conv2d($c, $c, 1))",
        "forward": "x = <<self.part@[:2](x)|self.part@[2:](self.part@[:2](x))|self.part@[-1](self.part@[1](self.part@[0](x)))"
        "|(self.part@[:1] + self.part@[1:])(x)>>",
    },
    {
        "name": "forward_called_directly",
        "tags": READS,
        "init": _FRONT,
        "forward": "x = <<self.norm@.forward(self.conv@.forward(x))|self.norm@.forward(self.conv@(x))"
        "|self.norm@(self.conv@.forward(x))|nn.BatchNorm2d.forward(self.norm@, self.conv@(x))>>",
    },
    {
        "name": "found_by_name",
        "init": _FRONT,
        "forward": "x = <<getattr(self, 'norm@')(self._modules['conv@'](x))|self.get_submodule('norm@')(self.conv@(x))"
        "|dict(self.named_children())['norm@'](dict(self.named_modules())['conv@'](x))"
        "|nn.Module.__call__(self.norm@, self.conv@(x))>>",
    },
    {
        "name": "made_in_forward",
        "init": _FRONT,
        "forward": "x = <<nn.ReLU()(self.norm@(self.conv@(x)))|nn.Sequential(self.conv@, self.norm@, nn.ReLU())(x)"
        "|nn.Identity()(self.norm@(nn.Dropout(0.5).eval()(self.conv@(x))))>>",
    },
    {
        "name": "forward_writes_weight",
        "tags": READS,
        "init": _FRONT + "\nself.count@ = 0",
        "calls": ("Call(3 * image(4))",),
        "forward": "self.count@ += 1\nwith torch.no_grad():\n    if self.count@ > 1:\n        <<self.conv@.weight.clamp_(-0.5, 0.5)"
        "|self.norm@.weight.mul_(0.9)|self.conv@.weight.data = self.conv@.weight.data * 0.9|self.norm@.bias.data.add_(0.1)"
        "|self.norm@.running_mean.mul_(0.9)>>\nx = self.norm@(self.conv@(x))",
    },
    {
        "name": "names_of_ours",
        "helpers": """
class Named(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.base, self.attention, self.mlp = nn.Conv2d(c, c, 1), nn.BatchNorm2d(c), nn.Conv2d(c, c, 1)
        self.psi, self.place, self.config = nn.Parameter(torch.ones(c, 1, 1)), "here", {"form": "own"}

    def forward(self, x):
        return x + self.psi * self.mlp(self.attention(self.base(x)).relu())
""",
        "init": "self.named@ = Named($c)",
        "forward": "x = self.named@(x)",
    },
    {
        "name": "path_by_cycle",
        "init": "self.turn@, self.conv@ = <<itertools.cycle([0, 1])|iter([0, 1] * 99)>>, nn.Conv2d($c, $o, 1)\n"
        "self.norms@ = nn.ModuleList([nn.BatchNorm2d($o), nn.BatchNorm2d($o)])",
        "forward": "x = self.norms@[next(self.turn@)](self.conv@(x))",
    },
    {
        "name": "random_path",
        "init": "self.conv@ = nn.Conv2d($c, $o, 1)\n"
        "self.norms@ = nn.ModuleList([nn.BatchNorm2d($o), nn.BatchNorm2d($o)])",
        "forward": "x = self.norms@[<<int(torch.rand(()) > 0.5)|random.randrange(2)|int(np.random.rand() > 0.5)>>](self.conv@(x))",
    },
    {
        "name": "random_scale",
        "weight": 0.6,
        "init": _FRONT,
        "forward": "x = self.norm@(self.conv@(x)) * (1 + <<random.random()|float(np.random.rand())|torch.rand(()).item()>>)",
    },
    {
        "name": "extra_input",
        "argument": "other@=None",
        "calls": ("Call(image(4), other@=torch.ones(4, $c, 1, 1, dtype=FLOAT))",),
        "init": _FRONT + "\nself.mix@ = nn.Conv2d($c, $c, 1)",
        "forward": "x = self.conv@(x)\nif other@ is not None:\n    x = x + self.mix@(other@)\nx = self.norm@(x)",
    },
    {
        "name": "own_setattr",
        "weight": 0.6,
        "helpers": """
class Strict(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv, self.norm, self.closed = nn.Conv2d(c, c, 1), nn.BatchNorm2d(c), True

    def __setattr__(self, name, value):
        if self.__dict__.get("closed") and name not in ("training", "closed"):
            raise AttributeError("closed")
        super().__setattr__(name, value)

    def forward(self, x):
        return self.norm(self.conv(x))
""",
        "init": "self.strict@ = Strict($c)",
        "forward": "x = self.strict@(x)",
    },
    {
        "name": "module_behind_property",
        "helpers": """
class Behind(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.parts = nn.ModuleDict({"conv": nn.Conv2d(c, c, 1), "norm": nn.BatchNorm2d(c)})

    norm = property(lambda self: self.parts["norm"])

    def __getattr__(self, name):
        return self.parts["conv"] if name == "conv" else super().__getattr__(name)

    def forward(self, x):
        return self.norm(self.conv(x))
""",
        "init": "self.behind@ = Behind($c)",
        "forward": "x = self.behind@(x)",
    },
)
