"The build reads its metadata from settings.ini and puts the notebooks and small files that commands use into the wheel."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

here = Path(__file__).resolve().parent
ini = ConfigParser(delimiters=['='], interpolation=None)
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
extras = {name.removeprefix('extra_'): cfg[name].split() for name in cfg if name.startswith('extra_')}
extras['dev'] = cfg['dev_requirements'].split()

shipped = ['train.ipynb', 'values.ipynb', 'evals.ipynb', 'compare.ipynb', 'values/lexicon.csv', 'plots/families.yaml']  # Of `nbs`, used by the modules

class BuildPy(build_py):
    "Copies what is shipped beside the modules of a wheel; an editable install finds it in its checkout"
    def run(self):
        super().run()
        if not self.editable_mode:
            for f in shipped: self.copy_file(here/'nbs'/f, Path(self.build_lib)/cfg['lib_name']/f)

class Sdist(sdist):
    "Holds what the build reads beside the modules, so that a wheel can be made of the source archive too"
    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, [*files, 'settings.ini', *(f'nbs/{f}' for f in shipped)])

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'],
    keywords=cfg['keywords'].split(), license_expression=cfg['license'],
    author=cfg['author'], author_email=cfg['author_email'],
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    classifiers=[f"Development Status :: {cfg['status']}", 'Intended Audience :: Science/Research',
                 'Programming Language :: Python :: 3 :: Only'],
    python_requires=f">={cfg['min_python']}", packages=find_packages(include=[cfg['lib_name'], f"{cfg['lib_name']}.*"]),
    install_requires=cfg['requirements'].split(), extras_require=extras,
    entry_points={'console_scripts': cfg['console_scripts'].split(),
                  'nbdev': [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"]},
    cmdclass={'build_py': BuildPy, 'sdist': Sdist})
