"Tools of those who work on the kit: no part of the installed package"
