"""The compiled kernels: plain C libraries, one for each set of registers that a processor may have.

They are opened with ctypes, so they belong to no version of Python and none of torch. Everything else is in
pyproject.toml. Without a compiler the package is installed without them.
"""

import os
import platform
from pathlib import Path
from tempfile import TemporaryDirectory

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

CSRC = Path("lightning_nobp/csrc")
# Products and sums are fused. What is not finite stays what it is, and sums keep the order they are written in.
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-g0"]
X86_64 = {
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"],
    "avx2": ["-mavx2", "-mfma"],
    "baseline": ["-march=x86-64-v2"],
}
VARIANTS = X86_64 if platform.machine().lower() in ("x86_64", "amd64") else {"baseline": []}


def kernels(name: str) -> list[Extension]:
    """The library `name` of all sources that begin with it, in every variant."""
    sources = sorted(str(path) for path in CSRC.glob(f"{name}_*.cpp"))
    headers = sorted(str(path) for path in CSRC.glob("*.h"))
    return [
        Extension(
            f"lightning_nobp.csrc.{name}_{variant}",
            sources,
            depends=headers,
            extra_compile_args=FLAGS + flags,
            language="c++",
            optional=True,
        )
        for variant, flags in VARIANTS.items()
    ]


class BuildKernels(build_ext):
    """Builds libraries that are no Python modules."""

    def get_ext_filename(self, fullname: str) -> str:
        """Not named after a version of Python."""
        return os.path.join(*fullname.split(".")) + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """No PyInit function."""
        return ext.export_symbols

    def build_extension(self, ext: Extension) -> None:
        """With OpenMP where the compiler knows it, else for one thread."""
        # Compiled with OpenMP and linked without: the runtime is the one that torch has loaded, and never a second.
        with_openmp = [*ext.extra_compile_args, "-fopenmp"]
        if self.compiler.compiler_type == "unix" and self._compiles(with_openmp):
            ext.extra_compile_args = with_openmp
        super().build_extension(ext)

    def _compiles(self, flags: list[str]) -> bool:
        with TemporaryDirectory() as folder:
            source = Path(folder, "probe.cpp")
            # Clang's code asks for another runtime than torch has on Linux.
            source.write_text(
                "#if defined(__clang__) && defined(__linux__)\n#error\n#endif\nint main() { return 0; }\n"
            )
            try:
                self.compiler.compile([str(source)], output_dir=folder, extra_postargs=flags)
            except CompileError:
                return False
        return True


class PlatformWheel(bdist_wheel):
    """A wheel for a platform and any Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        """The tag of the wheel's name."""
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[*kernels("quaternion"), *kernels("sparse"), *kernels("spiking")],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
)
