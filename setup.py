"""The native operator, which setup.cfg cannot describe. Without a compiler the package installs without it."""

from glob import glob
from tempfile import TemporaryDirectory

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FLAGS = ["-std=c++17", "-O3", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += ["-Wno-psabi", "-Wno-unused-function"]


class BuildNative(build_ext):
    """Builds with GCC and Clang, whose vector extensions the sources use; Visual C++ has none of them."""

    def build_extensions(self):
        if self.compiler.compiler_type == "msvc":
            self.warn("the native operator needs GCC or Clang; hf_xtc is installed without it")
        else:
            super().build_extensions()


def sources(*endings):
    return sorted(file for ending in endings for file in glob(f"hf_xtc/native/**/*.{ending}", recursive=True))


# The operator is called through ctypes and knows nothing of Python, so one wheel serves all versions of it (abi3).
NATIVE = Extension(
    "hf_xtc.native._native",
    sources("cpp"),
    depends=sources("hpp", "inl"),
    language="c++",
    extra_compile_args=FLAGS,
    py_limited_api=True,
    optional=True,
)

# Each build has folders of its own: two builds of one checkout at the same time would spoil one in build/.
with TemporaryDirectory() as folder:
    setup(
        ext_modules=[NATIVE],
        cmdclass={"build_ext": BuildNative},
        options={
            "build": {"build_base": folder},
            "egg_info": {"egg_base": folder},
            "bdist_wheel": {"py_limited_api": "cp310"},
        },
    )
