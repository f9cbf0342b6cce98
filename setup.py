"""Builds the native operator, which setup.cfg cannot describe. Without a compiler the package installs without it."""

from glob import glob
from tempfile import TemporaryDirectory

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FLAGS = ["-std=c++17", "-O3", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += ["-ffp-contract=off", "-Wno-psabi", "-Wno-unused-function", "-Wno-undefined-internal"]


class BuildNative(build_ext):
    """Builds with GCC or Clang, since the sources use their vector extensions, which Visual C++ does not have."""

    def build_extensions(self):
        if self.compiler.compiler_type == "msvc":
            self.warn("the native operator needs GCC or Clang; hf_xtc is installed without it")
        else:
            super().build_extensions()


def sources(*endings):
    return sorted(file for ending in endings for file in glob(f"hf_xtc/native/**/*.{ending}", recursive=True))


# The operator is called through ctypes and does not use Python's API, so one wheel serves all Python versions (abi3).
NATIVE = Extension(
    "hf_xtc.native._native",
    sources("cpp"),
    depends=sources("hpp", "inl"),
    language="c++",
    extra_compile_args=FLAGS,
    py_limited_api=True,
    optional=True,
)

# Temporary build folders, since two concurrent builds of one checkout would overwrite each other's build/.
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
