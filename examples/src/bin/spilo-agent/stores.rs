//! What stores other than plain etcd need, each where it is built in.

use std::sync::Arc;

use anyhow::Result;
use spilo_core::Dcs;
use spilo_core::local::{self, Etcd3, Local};
use spilo_dcs::{ClientTls, EtcdOptions};

/// Returns Consul, without connecting.
#[cfg(feature = "consul")]
pub(crate) fn consul(local: &Local, section: &local::Consul) -> Result<Arc<dyn Dcs>> {
    use spilo_dcs::consul::Registration;
    use spilo_dcs::{Consul, ConsulOptions};
    let mut options = ConsulOptions::new(local.scope.clone(), &section.url);
    options.namespace.clone_from(&local.namespace);
    options.request_timeout = crate::wiring::request_timeout(local);
    options.token = section
        .token
        .as_ref()
        .map(|token| token.expose().to_owned());
    options.datacenter.clone_from(&section.datacenter);
    options.registration = section.service.as_ref().map(|service| {
        let mut registration = Registration::default();
        registration.tags.clone_from(&service.tags);
        registration.check_interval = service.check_interval;
        registration
            .tls_server_name
            .clone_from(&service.tls_server_name);
        registration
    });
    options.tls = tls(&section.tls);
    Ok(Arc::new(Consul::new(options)?))
}

#[cfg(not(feature = "consul"))]
pub(crate) fn consul(_: &Local, _: &local::Consul) -> Result<Arc<dyn Dcs>> {
    anyhow::bail!("this spilo-agent was built without the feature `consul`")
}

/// Returns ZooKeeper, without connecting.
#[cfg(feature = "zookeeper")]
pub(crate) fn zookeeper(local: &Local, section: &local::ZooKeeper) -> Result<Arc<dyn Dcs>> {
    use spilo_dcs::{ZooKeeper, ZooKeeperOptions};
    let mut options = ZooKeeperOptions::new(local.scope.clone(), section.hosts.iter().cloned());
    options.namespace.clone_from(&local.namespace);
    options.request_timeout = crate::wiring::request_timeout(local);
    options.digest = section
        .digest
        .as_ref()
        .map(|digest| digest.expose().to_owned());
    Ok(Arc::new(ZooKeeper::new(options)?))
}

#[cfg(not(feature = "zookeeper"))]
pub(crate) fn zookeeper(_: &Local, _: &local::ZooKeeper) -> Result<Arc<dyn Dcs>> {
    anyhow::bail!("this spilo-agent was built without the feature `zookeeper`")
}

/// Has the endpoints of etcd found in DNS, where the section says so.
#[cfg(feature = "srv")]
#[expect(
    clippy::unnecessary_wraps,
    reason = "it fails where it is not built in"
)]
pub(crate) fn srv(options: &mut EtcdOptions, etcd3: &Etcd3) -> Result<()> {
    options.srv = etcd3.srv.as_ref().map(|from| {
        let mut srv = spilo_dcs::etcd::EtcdSrv::new(&from.domain);
        srv.suffix.clone_from(&from.suffix);
        srv.name_servers.clone_from(&from.name_servers);
        srv
    });
    Ok(())
}

#[cfg(not(feature = "srv"))]
pub(crate) fn srv(_: &mut EtcdOptions, etcd3: &Etcd3) -> Result<()> {
    match etcd3.srv {
        None => Ok(()),
        Some(_) => anyhow::bail!("srv: this spilo-agent was built without the feature `srv`"),
    }
}

/// Returns how TLS is spoken to a store, if it is.
pub(crate) fn tls(from: &local::ClientTls) -> Option<ClientTls> {
    let tls = ClientTls::new(from.authorities.as_ref()?);
    Some(match &from.certificate {
        Some(certificate) => {
            let key = from.key.as_ref().unwrap_or(certificate);
            tls.with_identity(certificate, key)
        }
        None => tls,
    })
}
