"""A plug-in that registers every built-in algorithm a second time, as NAME_twin: the A/A test of the runner."""

from convbench.registry import implementations, register

for _name, _row in implementations().items():
    if type(_row).__module__.startswith("convbench."):
        register(type(f"{type(_row).__name__}Twin", (type(_row),), {"name": f"{_name}_twin", "__module__": __name__}))
