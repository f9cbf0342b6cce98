"""Builds what setup.cfg cannot describe: the native operator, and a copy of the files of exported pages from web/.

Without a compiler the package installs without the operator.
"""

import shutil
from glob import glob
from pathlib import Path
from tempfile import TemporaryDirectory

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

FLAGS = ["-std=c++17", "-O3", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += ["-ffp-contract=off", "-Wno-psabi", "-Wno-unused-function", "-Wno-undefined-internal"]


class BuildNative(build_ext):
    """Builds with GCC or Clang, since the sources use their vector extensions, which Visual C++ does not have."""

    def build_extensions(self):
        if self.compiler.compiler_type == "msvc":
            self.warn("the native operator needs GCC or Clang; hf_xtc is installed without it")
        else:
            super().build_extensions()


class BuildPython(build_py):
    """Adds web/page and web/dist as hf_xtc/export/site; a checkout that is installed as editable uses web/ itself."""

    def run(self):
        super().run()
        if not self.editable_mode:
            for part in ("page", "dist"):
                folder = Path(self.build_lib, "hf_xtc", "export", "site", part)
                folder.mkdir(parents=True, exist_ok=True)
                for file in glob(f"web/{part}/*.*"):
                    shutil.copy(file, folder)


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
        cmdclass={"build_ext": BuildNative, "build_py": BuildPython},
        options={
            "build": {"build_base": folder},
            "egg_info": {"egg_base": folder},
            "bdist_wheel": {"py_limited_api": "cp310"},
        },
    )
