"""How the Jupyter server is run: as one behind a proxy, with its own token beside the endpoint's."""

c = get_config()  # noqa: F821 - what reads this file brings it along
c.ServerApp.ip = "0.0.0.0"
c.ServerApp.port = 8888
c.ServerApp.open_browser = False
# The endpoint's name is not this machine's.
c.ServerApp.allow_remote_access = True
c.ServerApp.jpserver_extensions = {"jupyter_server_terminals": True}
c.ServerApp.extra_static_paths = ["/srv/page"]
c.IdentityProvider.token = "of-the-notebook"
