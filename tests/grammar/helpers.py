"""Helper objects that keep what they computed, hooks that collect, modes that are mixed, and other marks of a run."""

from __future__ import annotations

from tests.grammar.piece import pieces

_GRID = "torch.linspace(0, 1, y.shape[-1], device=y.device, dtype=y.dtype)"

STATE = pieces(
    "helpers with state",
    {
        "name": "cache_in_object",
        "weight": 2,
        "helpers": """
class Grid@:
    <<__slots__ = ("known",)|kind = "grid">>

    def __init__(self):
        self.known = <<{}|OrderedDict()|defaultdict(dict)>>

    def __call__(self, y):
        n = y.shape[-1]
        if n not in self.known:
            self.known[n] = torch.linspace(0, 1, n, device=y.device, dtype=y.dtype)
        return self.known[n]
""",
        "init": "self.conv@, self.norm@ = nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c)\nself.grid@ = Grid@()",
        "forward": "y = self.norm@(self.conv@(x))\nx = y + self.grid@(y)",
    },
    {
        "name": "cache_nested",
        "init": "self.norm@ = nn.BatchNorm2d($c)\nself.cache@ = {'a': [{}, ({},)]}",
        "forward": "y = self.norm@(x)\nknown = self.cache@['a']<<[0]|[1][0]>>\nif y.shape[-1] not in known:\n"
        f"    known[y.shape[-1]] = {_GRID}\nx = y * (1 + known[y.shape[-1]])",
    },
    {
        "name": "cache_in_attribute",
        "init": "self.norm@, self.mask@ = nn.BatchNorm2d($c), None",
        "forward": "y = self.norm@(x)\nif self.mask@ is None or self.mask@.shape[-1] != y.shape[-1]:\n"
        f"    self.mask@ = {_GRID}\nx = y + self.mask@",
    },
    {
        "name": "cache_as_buffer",
        "init": "self.norm@ = nn.BatchNorm2d($c)\nself.register_buffer('mask@', None, persistent=<<True|False>>)",
        "forward": "y = self.norm@(x)\nif self.mask@ is None or self.mask@.shape[-1] != y.shape[-1]:\n"
        f"    self.mask@ = {_GRID}\nx = y + self.mask@",
    },
    {
        "name": "cache_in_module_global",
        "helpers": "KNOWN@ = {}",
        "init": "self.norm@, self.conv@ = nn.BatchNorm2d($c), nn.Conv2d($c, $c, 1)",
        "forward": "y = self.norm@(self.conv@(x))\nkey = <<y.shape[-1]|(y.shape[-1], y.dtype)>>\nif key not in KNOWN@:\n"
        f"    KNOWN@[key] = {_GRID}\nx = y + KNOWN@[key]",
    },
    {
        "name": "cache_in_class",
        "helpers": "class Known@:\n    known = {}",
        "init": "self.norm@, self.conv@ = nn.BatchNorm2d($c), nn.Conv2d($c, $c, 1)",
        "forward": "y = self.norm@(self.conv@(x))\nif y.shape[-1] not in Known@.known:\n"
        f"    Known@.known[y.shape[-1]] = {_GRID}\nx = y + Known@.known[y.shape[-1]]",
    },
    {
        "name": "cache_in_closure",
        "helpers": """
def grid_maker@():
    known = {}

    def grid(y):
        if y.shape[-1] not in known:
            known[y.shape[-1]] = torch.linspace(0, 1, y.shape[-1], device=y.device, dtype=y.dtype)
        return known[y.shape[-1]]

    return grid
""",
        "init": "self.norm@, self.grid@ = nn.BatchNorm2d($c), grid_maker@()",
        "forward": "y = self.norm@(x)\nx = y + self.grid@(y)",
    },
    {
        "name": "cache_in_default",
        "helpers": """
def grid@(y, known={}):
    if y.shape[-1] not in known:
        known[y.shape[-1]] = torch.linspace(0, 1, y.shape[-1], device=y.device, dtype=y.dtype)
    return known[y.shape[-1]]
""",
        "init": "self.norm@ = nn.BatchNorm2d($c)",
        "forward": "y = self.norm@(x)\nx = y + grid@(y)",
    },
    {
        "name": "cache_lru",
        "helpers": "@@functools.lru_cache\ndef grid@(n):\n    return torch.linspace(0, 1, n)",
        "init": "self.norm@ = nn.BatchNorm2d($c)",
        "forward": "y = self.norm@(x)\nx = y + grid@(y.shape[-1]).to(y)",
    },
    {
        "name": "cache_lru_of_device",
        "helpers": "@@functools.lru_cache\ndef grid@(n, device):\n    return torch.linspace(0, 1, n, device=device)",
        "init": "self.norm@ = nn.BatchNorm2d($c)",
        "forward": "y = self.norm@(x)\nx = y + grid@(y.shape[-1], y.device).to(y.dtype)",
    },
    {
        "name": "streaming_deque",
        "weight": 2,
        "init": "self.norm@, self.past@ = nn.BatchNorm2d($c), <<deque(maxlen=2)|[]>>",
        "forward": "y = self.norm@(x)\nself.past@.append(y.mean().detach())\nx = y + self.past@[<<0|-1>>]",
    },
    {
        "name": "streaming_object",
        "helpers": """
class Average@:
    def __init__(self):
        self.total, self.inner = 0.0, {"count": 0}

    def step(self, y):
        self.total = self.total + y.mean().detach()
        self.inner["count"] += 1
        return self.total / self.inner["count"]
""",
        "init": "self.norm@, self.average@ = nn.BatchNorm2d($c), Average@()",
        "forward": "y = self.norm@(x)\nx = y + self.average@.step(y)",
    },
    {
        "name": "streaming_attribute",
        "init": "self.norm@ = nn.BatchNorm2d($c)\nself.memory@ = torch.zeros(())",
        "forward": "y = self.norm@(x)\nself.memory@ = 0.5 * self.memory@.to(y) + y.mean().detach()\nx = y + self.memory@",
    },
    {
        "name": "streaming_buffer",
        "init": "self.norm@ = nn.BatchNorm2d($c)\nself.register_buffer('memory@', torch.zeros(1))",
        "forward": "y = self.norm@(x)\n<<self.memory@ = self.memory@ * 0.5 + y.mean()|self.memory@.mul_(0.5).add_(y.mean())"
        ">>\nx = y + self.memory@",
    },
    {
        "name": "stored_feature",
        "init": "self.norm@, self.conv@, self.seen@ = nn.BatchNorm2d($c), nn.Conv2d($c, $c, 1), None",
        "forward": "self.seen@ = self.norm@(self.conv@(x))\nx = F.relu(self.seen@) + <<self.seen@|0>>",
    },
    {
        "name": "counter_in_class",
        "helpers": "class Counter@:\n    calls, last = 0, None",
        "init": "self.norm@ = nn.BatchNorm2d($c)",
        "forward": "Counter@.calls += 1\nCounter@.last = x.detach()\nx = self.norm@(x)",
    },
    {
        "name": "out_buffer",
        "init": "self.norm@, self.out@ = nn.BatchNorm2d($c), {}",
        "forward": "y = self.norm@(x)\nspace = self.out@.setdefault(tuple(y.shape), torch.empty_like(y))\n"
        "x = space.copy_(y) * 1.5",
    },
    {
        "name": "index_list",
        "init": "self.norm@ = nn.BatchNorm2d($c)\nself.order@ = <<list(range($c))[::-1]|torch.arange($c).flip(0)"
        "|tuple(range($c))[::-1]>>\nself.conv@ = nn.Conv2d($c, $c, 1)",
        "forward": "x = self.norm@(self.conv@(x)[:, self.order@])",
    },
)

HOOKS = pieces(
    "hooks",
    {
        "name": "hook_collects",
        "weight": 2,
        "helpers": "KEPT@ = <<[]|deque(maxlen=3)>>",
        "init": "self.conv@, self.norm@ = nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c)",
        "after": "net.<<conv@|norm@>>.register_forward_hook(lambda m, a, y: KEPT@.append(y<<|.detach()|.mean()>>))",
        "forward": "x = self.norm@(self.conv@(x))",
    },
    {
        "name": "hook_sums",
        "helpers": "TOTAL@ = {'sum': torch.zeros(())}\ndef add@(m, a, y):\n    TOTAL@['sum'] = TOTAL@['sum'] + y.sum().detach()",
        "init": "self.conv@, self.norm@ = nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c)",
        "after": "net.<<conv@|norm@>>.register_forward_hook(add@)",
        "forward": "x = self.norm@(self.conv@(x))",
    },
    {
        "name": "hook_changes_output",
        "init": "self.conv@, self.norm@ = nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c)",
        "after": "net.<<conv@|norm@>>.register_forward_hook(lambda m, a, y: <<y * 2|y.relu()|y + a[0].mean()>>)",
        "forward": "x = self.norm@(self.conv@(x))",
    },
    {
        "name": "hook_changes_input",
        "init": "self.conv@, self.norm@ = nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c)",
        "after": "net.<<conv@|norm@>>.register_forward_pre_hook(lambda m, a: (a[0] * 2 + 1,))",
        "forward": "x = self.norm@(self.conv@(x))",
    },
    {
        "name": "hook_always_called",
        "helpers": "LAST@ = {}",
        "init": "self.conv@, self.norm@ = nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c)",
        "after": "net.conv@.register_forward_hook(lambda m, a, k, y: LAST@.update(y=y), with_kwargs=True, "
        "always_call=<<True|False>>)",
        "forward": "x = self.norm@(self.conv@(x))",
    },
    {
        "name": "hook_feeds_on",
        "init": "self.conv@, self.norm@, self.note@ = nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c), {}",
        # Not by a closure or a default argument: a deep copy, by which the checks run, does not take those along.
        "after": "net.conv@.register_forward_hook(functools.partial(keep@, net.note@))",
        "helpers": "def keep@(note, m, a, y):\n    note['y'] = y",
        "forward": "x = self.norm@(self.conv@(x))\nx = x + self.note@['y'] if 'y' in self.note@ else x",
        "weight": 0.5,
    },
)

MODES = pieces(
    "modes",
    {
        "name": "norm_kept_in_training",
        "weight": 2,
        "helpers": """
class Adapting@(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv, self.norm, self.next = nn.Conv2d(c, c, 1), nn.BatchNorm2d(c<<|, momentum=None|, momentum=0.3>>), nn.Conv2d(c, c, 1)

    def train(self, mode=True):
        super().train(mode)
        self.norm.train()
        return self

    def forward(self, x):
        return self.next(self.norm(self.conv(x)).relu())
""",
        "init": "self.part@ = Adapting@($c)",
        "forward": "x = self.part@(x)",
    },
    {
        "name": "norm_left_in_training",
        "init": "self.conv@, self.norm@ = nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c)",
        "after": "net.norm@.train()",
        "tags": frozenset({"modes"}),
        "forward": "x = self.norm@(self.conv@(x))",
    },
    {
        "name": "norm_without_statistics",
        "init": "self.conv@, self.norm@ = nn.Conv2d($c, $c, 1), nn.<<BatchNorm2d($c, track_running_stats=False)"
        "|InstanceNorm2d($c, affine=True)>>",
        "forward": "x = self.norm@(self.conv@(x))",
    },
    {
        "name": "frozen_in_train",
        "helpers": """
class Frozen@(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(False)
""",
        "init": "self.conv@, self.norm@ = nn.Conv2d($c, $c, 1), <<Frozen@($c)|nn.BatchNorm2d($c).requires_grad_(False)>>",
        "forward": "x = self.norm@(self.conv@(x))",
    },
    {
        "name": "mode_switched_inside",
        "weight": 0.5,
        "init": "self.conv@, self.norm@ = nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c)",
        "forward": "self.norm@.<<eval()|train(self.training)>>\nx = self.norm@(self.conv@(x))",
    },
    {
        "name": "dropout_at_test",
        "weight": 0.5,
        "init": "self.conv@, self.norm@ = nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c)",
        "forward": "x = F.dropout(self.norm@(self.conv@(x)), 0.3, training=True)",
    },
    {
        "name": "noise_at_test",
        "weight": 0.5,
        "init": "self.conv@, self.norm@ = nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c)",
        "forward": "x = self.norm@(self.conv@(x)) + 0.1 * torch.randn_like(x)",
    },
    {
        "name": "grad_mode_inside",
        "init": "self.conv@, self.norm@ = nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c)",
        "forward": "with torch.<<no_grad()|enable_grad()|set_grad_enabled(self.training)>>:\n    y = self.conv@(x)\n"
        "x = self.norm@(y)",
    },
    {
        "name": "checkpointed",
        "init": "self.part@ = nn.Sequential(nn.Conv2d($c, $c, 1), nn.BatchNorm2d($c))",
        "forward": "x = torch.utils.checkpoint.checkpoint(self.part@, x, use_reentrant=False)",
    },
)
