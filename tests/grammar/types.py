"""Mixed types, TorchScript, complex numbers, and parts that a trace cannot look into."""

from __future__ import annotations

from tests.grammar.piece import pieces

_FRONT = "self.conv@, self.norm@ = nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c)"

TYPES = pieces(
    "types",
    {
        "name": "bfloat16_part",
        "tags": frozenset({"coarse"}),
        "init": "self.conv@, self.norm@ = nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c)",
        "after": "net.conv@.bfloat16()",
        "forward": "x = self.norm@(self.conv@(x.to(self.conv@.weight.dtype)).to(self.norm@.weight.dtype))",
    },
    {
        "name": "float32_part",
        "tags": frozenset({"single"}),
        "init": "self.conv@, self.norm@ = nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c)",
        "after": "net.<<conv@|norm@>>.float()",
        "forward": "x = self.norm@(self.conv@(x.to(self.conv@.weight.dtype)).to(self.norm@.weight.dtype)).to(x.dtype)",
    },
    {
        "name": "complex_spectrum",
        "init": _FRONT,
        "forward": "f = torch.fft.rfft2(self.norm@(self.conv@(x)), norm='ortho')\n"
        "x = torch.fft.irfft2(<<f * 0.5|f.abs() * f|f.conj()|torch.complex(f.real, f.imag * 2)>>, s=x.shape[2:], norm='ortho')",
    },
    {
        "name": "complex_weight",
        "init": "self.norm@ = nn.BatchNorm2d($c)\nself.w@ = nn.Parameter(torch.randn($c, 1, 1, 2))",
        "forward": "f = torch.fft.rfft2(self.norm@(x), norm='ortho') * torch.view_as_complex(self.w@)\n"
        "x = torch.fft.irfft2(f, s=x.shape[2:], norm='ortho')",
    },
    {
        "name": "complex_parameter",
        "init": "self.norm@ = nn.BatchNorm2d($c)\nself.w@ = nn.Parameter(torch.randn($c, 1, 1, dtype=torch.complex128))",
        "forward": "x = (self.norm@(x) * self.w@).<<real|abs()>>.to(x.dtype)",
    },
    {
        "name": "embedding",
        "init": _FRONT + "\nself.table@ = nn.Embedding($c, $c)",
        "forward": "y = self.norm@(self.conv@(x))\nx = y + self.table@(y.mean((2, 3)).argmax(1))[..., None, None]",
    },
    {
        "name": "scripted",
        "weight": 1.5,
        "init": "self.conv@, self.norm@ = nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c)\nself.script@ = torch.jit.script("
        "nn.Sequential(<<nn.ReLU(), nn.Conv2d($c, $c, 1)|nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c)>>))",
        "forward": "x = self.script@(self.norm@(self.conv@(x)))",
    },
    {
        "name": "traced",
        "weight": 0.7,
        "init": _FRONT,
        "after": "net.trace@ = torch.jit.trace(nn.Conv2d($c, $c, 1).to(FLOAT).eval(), torch.zeros(2, $c, 6, 6, dtype=FLOAT))",
        "forward": "x = self.trace@(self.norm@(self.conv@(x)))",
    },
    {
        "name": "scripted_function",
        "weight": 0.7,
        "helpers": """
SCRIPTED = torch.jit.CompilationUnit('''
def mix(x, s: float):
    return x.relu() * s + 1
''')
""",
        "init": _FRONT,
        "forward": "x = SCRIPTED.mix(self.norm@(self.conv@(x)), 0.5)",
    },
    {
        "name": "own_function",
        "helpers": """
class Double(torch.autograd.Function):
    @@staticmethod
    def forward(ctx, x):
        return <<x * 2|x.clone().mul_(2)>>

    @@staticmethod
    def backward(ctx, g):
        return g * 2
""",
        "init": _FRONT,
        "forward": "x = self.norm@(Double.apply(self.conv@(x)))",
    },
    {
        "name": "functional_call",
        "init": _FRONT,
        "forward": "x = self.norm@(torch.func.functional_call(self.conv@, {'bias': self.conv@.bias * <<2|0>>}, (x,)))",
    },
    {
        "name": "vmapped",
        "weight": 0.5,
        "init": _FRONT,
        "forward": "x = self.norm@(torch.vmap(lambda y: <<y * 2|y.relu()|y - y.mean()>>)(self.conv@(x)))",
    },
    {
        "name": "numpy_round_trip",
        "init": _FRONT,
        "forward": "x = self.norm@(torch.from_numpy(self.conv@(x).detach().numpy()<< * 2|.clip(-1, 1)|>>).to(x))",
    },
    {
        "name": "python_loop",
        "init": _FRONT,
        "forward": "x = self.norm@(torch.stack([torch.stack([row<< * 2|>> for row in image]) for image in self.conv@(x)]))",
    },
    {
        "name": "in_a_thread",
        "weight": 0.5,
        "init": _FRONT,
        "forward": "with concurrent.futures.ThreadPoolExecutor(1) as pool:\n"
        "    with torch.no_grad():\n        y = pool.submit(lambda: self.<<conv@(x)|norm@(x)>>.detach()).result()\n"
        "x = self.norm@(y) + self.conv@(x)",
    },
    {
        "name": "autocast_inside",
        "weight": 0.5,
        "tags": frozenset({"coarse"}),
        "init": _FRONT,
        "forward": "with torch.autocast('cpu', torch.bfloat16):\n    y = self.conv@(x)\nx = self.norm@(y.to(x.dtype))",
    },
    {
        "name": "lazy",
        "weight": 0.4,
        "tags": frozenset({"lazy"}),
        "init": "self.conv@, self.norm@ = nn.LazyConv2d($c, 1), nn.<<LazyBatchNorm2d()|BatchNorm2d($c)>>",
        "forward": "x = self.norm@(self.conv@(x))",
    },
    {
        "name": "inference_mode_inside",
        "weight": 0.4,
        "init": _FRONT,
        "forward": "with torch.inference_mode():\n    y = self.norm@(self.conv@(x))\nx = y.clone() + x",
    },
    {
        "name": "tensor_subclass",
        "weight": 0.5,
        "helpers": "class Marked(torch.Tensor):\n    pass",
        "init": _FRONT,
        "forward": "x = self.norm@(self.conv@(x.as_subclass(Marked))).as_subclass(torch.Tensor)",
    },
)

STEMS = pieces(
    "stems",
    {
        "name": "float_image",
        "weight": 6,
        "init": "self.stem = nn.Conv2d(3, $o, 3, padding=1)",
        "forward": "x = self.stem(x)",
    },
    {
        "name": "byte_image",
        "init": "self.stem = nn.Conv2d(3, $o, 3, padding=1)",
        "forward": "x = self.stem(<<x.to(self.stem.weight.dtype) / 255 - 0.5|(x / 255.0).to(self.stem.weight) * 2 - 1>>)",
        "tags": frozenset({"bytes"}),
    },
    {
        "name": "normalised_image",
        "init": "self.stem = nn.Conv2d(3, $o, 3, padding=1)\nself.register_buffer('mean', torch.tensor([0.4, 0.5, 0.6])"
        ".view(3, 1, 1))\nself.scale = 2.0",
        "forward": "x = self.stem((x - self.mean) * self.scale)",
    },
)

HEADS = pieces(
    "heads",
    {
        "name": "pooled",
        "weight": 4,
        "init": "self.head = nn.Linear($c, 5)",
        "forward": "return self.head(<<x.mean((2, 3))|F.adaptive_avg_pool2d(x, 1).flatten(1)|x.amax((2, 3))>>)",
    },
    {"name": "map", "init": "self.head = nn.Conv2d($c, 5, 1)", "forward": "return self.head(x)"},
    {
        "name": "several",
        "init": "self.head = nn.Conv2d($c, 5, 1)",
        "forward": "return <<{'map': self.head(x), 'features': x}|(self.head(x), [x, x.mean((2, 3))])|[self.head(x), None, x]"
        "|Output(self.head(x), x)|SimpleNamespace(map=self.head(x))>>",
    },
    {
        "name": "flattened",
        "tags": frozenset({"square"}),
        "init": "self.head = nn.Linear(36 * $c, 5)",
        "forward": "return self.head(x.flatten(1))",
    },
    {
        "name": "labels",
        "weight": 0.4,
        "init": "self.head = nn.Conv2d($c, 5, 1)",
        "forward": "y = self.head(x)\nreturn y, y.argmax(1)",
    },
)
