//! The language by example: inheritance, 8.3 spellings, includes, one host's view, what has no effect yet.

use std::collections::BTreeMap;

use crate::config::model::{
    Config, DeciSeconds, DiskOptions, Handler, Host, HostKind, KibPerSecond, MetaDisk, NetOptions, Protocol,
    ResolvedResource, ResourceOptions, ResyncAfter, Seconds, Secret,
};
use crate::config::values::{AfterSb0Pri, AfterSb1Pri, AfterSb2Pri};
use crate::config::{Document, Loader, LocalNode, ResolveError, parse_text, parse_with};
use crate::units::{Minor, Sectors, VolumeNr};

fn document(text: &str) -> Document {
    parse_text("t.conf", text).unwrap_or_else(|report| panic!("{report}"))
}

fn config(text: &str) -> Config {
    document(text).into_config()
}

fn errors(text: &str) -> Vec<String> {
    let report = parse_text("t.conf", text).expect_err("accepted");
    let list = report.diagnostics.list().iter();
    list.map(|d| format!("{}:{} {}", d.pos.unwrap().line, d.pos.unwrap().col, d.message)).collect()
}

fn resolve(config: &Config, name: &str, node: &str) -> ResolvedResource {
    config.resolve(name, &LocalNode::named(node)).unwrap()
}

const TWO_HOSTS: &str = "device minor 0; disk /dev/sdb; meta-disk internal; on a { address 10.0.0.1:7788; } on b { address 10.0.0.2:7788; }";

const CLASSIC: &str = r#"
resource r0 {
  protocol C;
  startup { wfc-timeout 15; degr-wfc-timeout 60; become-primary-on both; }
  net { cram-hmac-alg sha1; shared-secret "my-secret"; allow-two-primaries;
        after-sb-0pri discard-zero-changes; after-sb-1pri discard-secondary; after-sb-2pri disconnect; }
  syncer { rate 110M; }
  on lxeon  { device /dev/drbd0; disk /dev/md2;  address 10.7.4.45:7788; meta-disk internal; }
  on nettop { device /dev/drbd0; disk /dev/sda4; address 10.7.4.9:7788;  meta-disk internal; }
}
"#;

#[test]
fn the_classic_two_node_file_means_the_same_on_both_hosts() {
    let config = config(CLASSIC);
    for (me, peer, disk) in [("lxeon", "nettop", "/dev/md2"), ("nettop", "lxeon", "/dev/sda4")] {
        let resource = resolve(&config, "r0", me);
        assert_eq!((resource.me.name(), resource.peer(None).unwrap().name()), (me.to_owned(), peer.to_owned()));
        let [volume] = resource.me.volumes.as_slice() else { panic!("{resource:?}") };
        assert_eq!((volume.vnr, volume.minor, volume.device.as_str()), (VolumeNr(0), Minor(0), "/dev/drbd0"));
        assert_eq!((volume.backing_disk.as_str(), &volume.meta_disk), (disk, &MetaDisk::Internal));
        assert_eq!(volume.disk.resync_rate, Some(KibPerSecond(110 * 1024)));
        let net = &resource.net;
        assert_eq!(net.protocol, Some(Protocol::C));
        assert_eq!(net.cram_hmac_alg().map(String::as_str), Some("sha1"));
        assert_eq!(net.shared_secret().map(Secret::expose), Some("my-secret"));
        assert_eq!(net.after_sb_0pri, Some(AfterSb0Pri::DiscardZeroChanges));
        assert_eq!(net.after_sb_1pri, Some(AfterSb1Pri::DiscardSecondary));
        assert_eq!(net.after_sb_2pri, Some(AfterSb2Pri::Disconnect));
        assert!(net.allow_two_primaries());
        assert_eq!(resource.startup.wfc_timeout, Some(Seconds(15)));
        assert_eq!(resource.startup.become_primary_on, ["both"]);
    }
    let link = resolve(&config, "r0", "lxeon").link(None).unwrap();
    assert_eq!(
        (link.local.to_string(), link.peer.to_string()),
        ("ipv4 10.7.4.45:7788".into(), "ipv4 10.7.4.9:7788".into())
    );
}

#[test]
fn two_hosts_on_one_machine_have_files_as_disks_and_flexible_metadata() {
    let config = config(
        "resource r0 {
          net { protocol C; }
          on n1 { device /dev/drbd0 minor 0; disk /tmp/a.img; address 127.0.0.1:7789; meta-disk /tmp/md1.img; }
          on n2 { device /dev/drbd0 minor 0; disk /tmp/b.img; address 127.0.0.2:7789; meta-disk /tmp/md2.img; }
        }",
    );
    for (me, disk, md, address) in
        [("n1", "/tmp/a.img", "/tmp/md1.img", "127.0.0.1:7789"), ("n2", "/tmp/b.img", "/tmp/md2.img", "127.0.0.2:7789")]
    {
        let resource = resolve(&config, "r0", me);
        let volume = &resource.me.volumes[0];
        assert_eq!(volume.backing_disk, disk);
        assert_eq!(volume.meta_disk, MetaDisk::Flexible { dev: md.to_owned() });
        assert_eq!((volume.meta_disk.device(disk), volume.meta_disk.index_text()), (md, "flexible".to_owned()));
        assert_eq!(resource.me.address.socket_addr(0).to_string(), address);
    }
    assert_eq!(config.not_yet_effective(), []);
}

#[test]
fn the_8_3_sections_land_where_8_4_has_them() {
    let old = config(&format!(
        "common {{ syncer {{ rate 10M; verify-alg md5; }} }}
         resource r {{ protocol A; syncer {{ rate 30M; al-extents 257; use-rle no; cpu-mask f; csums-alg sha1;
           c-plan-ahead 0; c-fill-target 24k; on-no-data-accessible suspend-io; }}
           disk {{ no-disk-flushes; no-md-flushes; }} net {{ no-tcp-cork; }} handlers {{ outdate-peer x; }} {TWO_HOSTS} }}"
    ));
    let new = config(&format!(
        "common {{ disk {{ resync-rate 10M; }} net {{ verify-alg md5; }} }}
         resource r {{ net {{ protocol A; use-rle no; csums-alg sha1; tcp-cork no; }} options {{ cpu-mask f; on-no-data-accessible suspend-io; }}
           disk {{ resync-rate 30M; al-extents 257; c-plan-ahead 0; c-fill-target 48; disk-flushes no; md-flushes no; }}
           handlers {{ fence-peer x; }} {TWO_HOSTS} }}"
    ));
    let strip = |mut config: Config| {
        config.resources[0].place = Default::default();
        config
    };
    assert_eq!(strip(old), strip(new));
}

#[test]
fn values_are_inherited_from_common_to_resource_to_volume() {
    let config = config(
        "common { protocol B; net { ping-int 5; timeout 40; } disk { resync-rate 10M; al-extents 300; on-io-error pass_on; }
                  handlers { split-brain \"common\"; pri-lost \"common\"; } startup { wfc-timeout 7; become-primary-on a; } }
         resource r {
           net { timeout 50; } disk { resync-rate 20M; } handlers { pri-lost own; }
           volume 0 { device minor 0; disk /dev/x; meta-disk internal; }
           volume 1 { device minor 1; disk /dev/y; meta-disk /dev/m[1]; }
           on a { address 10.0.0.1:7788; volume 1 { disk /dev/z; disk { resync-rate 40M; } } }
           on b { address 10.0.0.2:7788; }
         }",
    );
    let a = resolve(&config, "r", "a");
    assert_eq!((a.net.protocol(), a.net.ping_int(), a.net.timeout()), (Protocol::B, Seconds(5), DeciSeconds(50)));
    let rates: Vec<_> = a.me.volumes.iter().map(|v| (v.backing_disk.as_str(), v.disk.resync_rate().0 / 1024)).collect();
    assert_eq!(rates, [("/dev/x", 20), ("/dev/z", 40)]);
    assert_eq!(a.me.volumes[1].meta_disk, MetaDisk::Indexed { dev: "/dev/m".to_owned(), idx: 1 });
    assert!(a.me.volumes.iter().all(|v| v.disk.al_extents == Some(300)));
    assert_eq!(a.handlers, BTreeMap::from([(Handler::SplitBrain, "common".into()), (Handler::PriLost, "own".into())]));
    assert_eq!((a.startup.wfc_timeout(), a.startup.become_primary_on), (Seconds(7), vec!["a".to_owned()]));
    let b = resolve(&config, "r", "b");
    assert_eq!(b.me.volumes[1].disk.resync_rate(), KibPerSecond(20 * 1024));
}

#[test]
fn a_resource_level_volume_loses_its_disk_options_and_that_is_said() {
    let document = document(
        "common { disk { al-extents 300; } }
         resource r { volume 0 { device minor 0; disk /dev/x; meta-disk internal; disk { al-extents 400; resync-rate 9M; } }
           on a { address 10.0.0.1:7788; } on b { address 10.0.0.2:7788; } }",
    );
    let volume = &document.config().resources[0].hosts[0].volumes[0];
    assert_eq!((volume.disk.al_extents, volume.disk.resync_rate), (Some(300), Some(KibPerSecond(9216))));
    let [warning] = document.warnings() else { panic!("{:?}", document.warnings()) };
    assert!(warning.starts_with("t.conf:2:90: warning: al-extents 400 has no effect here; 300"), "{warning}");
}

#[test]
fn repeated_options_the_last_counts_in_net_and_the_first_in_disk() {
    let text = format!(
        "resource r {{ net {{ ping-int 5; ping-int 6; }} disk {{ al-extents 100; al-extents 200; }} {TWO_HOSTS} }}"
    );
    let document = document(&text);
    let resource = resolve(document.config(), "r", "a");
    assert_eq!((resource.net.ping_int(), resource.me.volumes[0].disk.al_extents()), (Seconds(6), 100));
    assert_eq!(document.warnings().len(), 2);
}

#[test]
fn al_extents_are_moved_into_their_range_with_a_warning() {
    let document = document(&format!("resource r {{ syncer {{ al-extents 7; }} {TWO_HOSTS} }}"));
    assert_eq!(document.config().resources[0].hosts[0].volumes[0].disk.al_extents, Some(67));
    assert!(document.warnings()[0].contains("al-extents 7 is outside 67..65534; 67 is used"));
}

#[test]
fn several_errors_are_found_in_one_run() {
    let found = errors(
        "resource r {
           net { timeout 0; pingint 5; ping-int 5 ko-count 900; }
           disc { }
           on a { address 10.0.0.1:7788; device minor 0; }
         }
         resource s { on b { address 300.0.0.1:1; } }",
    );
    assert_eq!(
        found,
        [
            "2:26 timeout 0 => 0 out of range [1..600]",
            "2:29 unknown option 'pingint' in net { }",
            "2:51 expected ';' before 'ko-count'",
            "2:60 ko-count 900 => 900 out of range [0..200]",
            "3:12 unknown statement 'disc' in resource r",
            "6:38 '300.0.0.1' is no IPv4 address",
        ]
    );
}

#[test]
fn words_of_drbd_9_are_named_as_such() {
    let report =
        parse_text("t.conf", &format!("resource r {{ options {{ quorum majority; }} node-id 1; {TWO_HOSTS} }}"));
    let text = report.unwrap_err().to_string();
    assert!(text.contains("quorum belongs to DRBD 9") && text.contains("node-id belongs to DRBD 9"), "{text}");
}

/// Files in memory.
struct Memory(BTreeMap<&'static str, String>);

impl Loader for Memory {
    fn read(&mut self, path: &str) -> Result<Vec<u8>, String> {
        let path = self.canonical(path).ok_or("no such file")?;
        self.0.get(path.as_str()).map(|t| t.clone().into_bytes()).ok_or_else(|| "no such file".to_owned())
    }

    fn list(&mut self, dir: &str) -> Option<Vec<String>> {
        let dir = if dir == "/" { "/".to_owned() } else { format!("{dir}/") };
        let names = self.0.keys().filter_map(|p| p.strip_prefix(&dir)).filter(|n| !n.contains('/'));
        Some(names.map(str::to_owned).collect())
    }

    fn canonical(&mut self, path: &str) -> Option<String> {
        let mut parts = Vec::new();
        for part in path.split('/').filter(|p| !p.is_empty() && *p != ".") {
            if part == ".." {
                parts.pop();
            } else {
                parts.push(part);
            }
        }
        let path = format!("/{}", parts.join("/"));
        self.0.contains_key(path.as_str()).then_some(path)
    }
}

fn with_files(main: &str, files: &[(&'static str, &str)]) -> Result<Document, String> {
    let mut memory = Memory(files.iter().map(|(p, t)| (*p, (*t).to_owned())).collect());
    parse_with("/etc/drbd.conf", main, &mut memory).map_err(|report| report.to_string())
}

#[test]
fn includes_start_from_the_including_file_are_sorted_and_read_once() {
    let document = with_files(
        "include \"drbd.d/*.res\"; include \"drbd.d/a.res\"; include \"none-*\"; include \"drbd.conf\";",
        &[
            ("/etc/drbd.conf", "never read: nonsense"),
            ("/etc/drbd.d/b.res", "resource b { }"),
            ("/etc/drbd.d/a.res", "include \"../drbd.d/sub/c.res\"; resource a { }"),
            ("/etc/drbd.d/sub/c.res", "include \"../a.res\"; resource c { }"),
            ("/etc/drbd.d/.hidden.res", "nonsense"),
            ("/etc/drbd.d/x.res.old", "nonsense"),
        ],
    );
    let names: Vec<_> = document.unwrap().config().resources.iter().map(|r| r.name.clone()).collect();
    assert_eq!(names, ["c", "a", "b"]);
}

#[test]
fn an_included_file_cannot_close_the_block_of_its_includer_and_errors_name_it() {
    let text = with_files("include one; }", &[("/etc/one", "resource r { net { timeout 0; } } }")]).unwrap_err();
    assert!(text.contains("/etc/one:1:28: timeout 0"), "{text}");
    assert!(text.contains("/etc/one:1:35: expected one of global"), "{text}");
    assert!(text.contains("/etc/drbd.conf:1:14: expected one of global"), "{text}");
    let text = with_files("include gone;", &[]).unwrap_err();
    assert!(text.contains("cannot open include file 'gone'") && text.contains("looked for /etc/gone"), "{text}");
}

#[test]
fn a_long_chain_of_includes_ends_with_an_error() {
    let names: Vec<&'static str> = (0..100).map(|i| &*Box::leak(format!("/etc/f{i}").into_boxed_str())).collect();
    let texts: Vec<_> = (1..=100).map(|i| format!("include f{i};")).collect();
    let files: Vec<_> = names.iter().copied().zip(texts.iter().map(String::as_str)).collect();
    let text = with_files("include f0;", &files).unwrap_err();
    assert!(text.contains("nested more than 64 deep"), "{text}");
}

#[test]
fn a_host_without_a_section_is_told_so_with_the_names_there_are() {
    let config = config(CLASSIC);
    let error = config.resolve("r0", &LocalNode::named("LXEON")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "'r0' not defined in your config (for this host). This host is LXEON; the resource is for lxeon, nettop. \
         Is the name in an 'on' section misspelled?"
    );
    assert_eq!(config.resolve_all(&LocalNode::named("other")).unwrap(), []);
}

#[test]
fn floating_sections_are_found_by_address_and_a_name_match_wins() {
    let config = config(
        "resource r { device minor 0; disk /dev/x; meta-disk internal;
           floating 127.0.0.1:7788; floating ipv6 [::1]:7788 { disk /dev/y; } }",
    );
    let has_v6 = |ip: &core::net::IpAddr| ip.is_ipv6();
    let by_address = config.resolve("r", &LocalNode { name: "host", has_address: &has_v6 }).unwrap();
    assert_eq!(
        (by_address.me.name().as_str(), by_address.me.volumes[0].backing_disk.as_str()),
        ("ipv6 [::1]:7788", "/dev/y")
    );
    let both = |_: &core::net::IpAddr| true;
    let error = config.resolve("r", &LocalNode { name: "host", has_address: &both }).unwrap_err();
    assert!(matches!(error, ResolveError::ManyForMe { .. }), "{error}");
    let by_name = config.resolve("r", &LocalNode { name: "127.0.0.1", has_address: &both }).unwrap();
    assert_eq!(by_name.peer(None).unwrap().name(), "ipv6 [::1]:7788");
}

#[test]
fn three_hosts_need_a_choice_of_the_peer() {
    let config = config(&format!("resource r {{ {TWO_HOSTS} on c {{ address 10.0.0.3:7788; }} }}"));
    let resource = resolve(&config, "r", "a");
    assert!(matches!(resource.peer(None), Err(ResolveError::ManyPeers { .. })));
    assert_eq!(resource.peer(Some("c")).unwrap().name(), "c");
    assert!(resource.peer(Some("a")).unwrap_err().to_string().contains("matches this host itself"));
    assert!(resource.peer(Some("d")).unwrap_err().to_string().contains("matches no host section"));
}

#[test]
fn a_stacked_section_is_mine_through_its_lower_resource_and_has_its_device_as_disk() {
    let config = config(
        "resource low { volume 0 { device minor 1; disk /dev/x; meta-disk internal; } volume 1 { device /dev/drbd_two minor 2; disk /dev/y; meta-disk internal; }
           on a { address 10.0.0.1:1; } on b { address 10.0.0.2:1; } }
         resource up { stacked-on-top-of low { address 10.0.0.9:2; volume 0 { device minor 10; } volume 1 { device minor 11; } }
           on c { address 10.0.0.3:2; volume 0 { device minor 10; disk /dev/x; meta-disk internal; } volume 1 { device minor 11; disk /dev/y; meta-disk internal; } } }",
    );
    let up = resolve(&config, "up", "b");
    assert!(up.stacked);
    let disks: Vec<_> = up.me.volumes.iter().map(|v| (v.backing_disk.as_str(), &v.meta_disk)).collect();
    assert_eq!(disks, [("/dev/drbd1", &MetaDisk::Internal), ("/dev/drbd_two", &MetaDisk::Internal)]);
    assert_eq!(up.me.kind, HostKind::Stacked { lower: "low".to_owned(), hosts: vec!["a".to_owned(), "b".to_owned()] });
    let far = resolve(&config, "up", "c");
    assert_eq!((far.stacked, far.peer(None).unwrap().name()), (false, "a b".to_owned()));
}

#[test]
fn a_proxy_puts_its_inside_address_in_the_place_of_the_peer() {
    let config = config(
        "resource r { device minor 0; disk /dev/x; meta-disk internal; net { protocol A; }
           on a { address 127.0.0.1:1; proxy on a { inside 127.0.0.1:2; outside 10.0.0.1:3; } }
           on b { address 127.0.0.1:1; proxy on b { inside 127.0.0.1:4; outside 10.0.0.2:3; } } }",
    );
    assert_eq!(resolve(&config, "r", "a").link(None).unwrap().peer.port, 2);
    assert!(config.not_yet_effective().iter().any(|n| n.option == "proxy on a"));
}

#[test]
fn everything_without_effect_is_listed_once_with_its_place() {
    let list = config(&format!(
        "resource r {{ net {{ after-sb-0pri disconnect; rr-conflict violently; allow-two-primaries no; verify-alg sha1; }}
           disk {{ fencing dont-care; c-plan-ahead 0; disk-timeout 10; }} handlers {{ pri-lost x; local-io-error y; }}
           options {{ cpu-mask f; on-no-data-accessible suspend-io; }} {TWO_HOSTS} }}"
    ))
    .not_yet_effective();
    let texts: Vec<_> = list.iter().map(|n| format!("{}: {}", n.place, n.option)).collect();
    assert_eq!(texts, ["resource r, options: cpu-mask f", "resource r, net: verify-alg sha1",]);
    assert!(list.iter().all(|n| !n.why.is_empty()));
}

#[test]
fn combinations_that_the_engine_refuses_are_warned_about() {
    let warnings = |text: &str| document(&format!("resource r {{ {text} {TWO_HOSTS} }}")).warnings().join("\n");
    assert!(warnings("net { protocol B; allow-two-primaries; }").contains("two primaries need protocol C"));
    assert!(warnings("net { on-congestion pull-ahead; }").contains("needs protocol A"));
    assert!(warnings("protocol A; disk { fencing resource-and-stonith; }").contains("needs protocol B or C"));
    assert!(warnings("net { shared-secret x; }").contains("belong together"));
    assert_eq!(warnings("net { protocol A; on-congestion pull-ahead; }"), "");
}

#[test]
fn the_model_survives_json() {
    for text in [
        CLASSIC,
        "resource r { device minor 0; disk /dev/x; meta-disk /dev/m[3]; floating ipv6 [fe80::1%eth0]:7788 { options { cpu-mask 3; } } }",
    ] {
        let config = config(text);
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), config, "{json}");
    }
}

#[test]
fn the_secret_shows_in_no_debug_text_and_in_no_error() {
    let document = document(CLASSIC);
    assert!(!format!("{document:?}").contains("my-secret"));
    let broken = CLASSIC.replace("cram-hmac-alg sha1; shared-secret", "cram-hmac-alg sha1 shared-secret");
    let report = parse_text("t.conf", &broken).unwrap_err();
    let text = report.to_string();
    assert!(text.contains("expected ';' before 'shared-secret'") && text.contains("\"*********\""), "{text}");
    assert!(!text.contains("my-secret") && !format!("{report:?}").contains("my-secret"), "{report:?}");
}

/// The back-end commands that drbdadm 8.4 would run, against our view of the same file.
#[test]
fn effective_options_are_those_that_drbdadm_hands_to_its_back_end() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/config/valid");
    let mut compared = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let (base, stacked) = match (name.strip_suffix(".up"), name.strip_suffix(".up-stacked")) {
            (Some(base), _) => (base, false),
            (_, Some(base)) => (base, true),
            _ => continue,
        };
        let text = std::fs::read_to_string(format!("{dir}/{base}.conf")).unwrap();
        let node = text.lines().find_map(|l| l.strip_prefix("# node: ")).unwrap();
        let config = config(&text);
        let resolved = config.resolve_all(&LocalNode::named(node)).unwrap();
        let mine: Vec<_> = resolved.iter().filter(|r| r.stacked == stacked).collect();
        for line in std::fs::read_to_string(format!("{dir}/{name}")).unwrap().lines() {
            compare_command(&mine, &line.split(' ').collect::<Vec<_>>(), base);
            compared += 1;
        }
    }
    assert!(compared > 50, "{compared}");
}

fn compare_command(resources: &[&ResolvedResource], words: &[&str], name: &str) {
    let by_name = |name: &str| *resources.iter().find(|r| r.name == name).unwrap();
    let volumes = || resources.iter().flat_map(|r| r.me.volumes.iter());
    let options = || words.iter().filter_map(|w| w.strip_prefix("--")?.split_once('='));
    match words {
        ["drbdsetup-84", "new-resource", resource, ..] => {
            let mut expected = ResourceOptions::default();
            options().for_each(|(o, v)| expected.set(o, v).unwrap());
            assert_eq!(by_name(resource).options, expected, "{name}");
        }
        ["drbdsetup-84", "new-minor", resource, minor, vnr] => {
            let volume = by_name(resource).me.volumes.iter().find(|v| v.vnr.to_string() == *vnr).unwrap();
            assert_eq!(volume.minor.to_string(), *minor, "{name}");
        }
        ["drbdsetup-84", "attach", minor, disk, meta, index, ..] => {
            let volume = volumes().find(|v| v.minor.to_string() == *minor).unwrap();
            assert_eq!(volume.backing_disk, *disk, "{name}");
            assert_eq!(volume.meta_disk.device(disk), *meta, "{name}");
            assert_eq!(volume.meta_disk.index_text(), *index, "{name}");
            let mut expected = DiskOptions::default();
            for (option, value) in options() {
                if option == "resync-after" {
                    expected.resync_after = Some(ResyncAfter::Minor(Minor(value.parse().unwrap())));
                } else {
                    expected.set(option, value).unwrap();
                }
            }
            assert_eq!(volume.disk, expected, "{name}");
        }
        ["drbdsetup-84", "connect", resource, local, peer, ..] => {
            let resource = by_name(resource);
            let text = |address: &crate::config::model::Address| {
                // drbdadm prints its words as a shell wants them.
                address.to_string().replacen(' ', ":", 1).replace('[', "\\[").replace(']', "\\]")
            };
            match resource.link(None) {
                Ok(link) => {
                    assert_eq!((text(&link.local), text(&link.peer)), ((*local).into(), (*peer).into()), "{name}");
                }
                Err(_) => assert_eq!(*peer, "N/A", "{name}"),
            }
            let mut expected = NetOptions::default();
            options().filter(|(o, _)| !o.starts_with("alternate-")).for_each(|(o, v)| expected.set(o, v).unwrap());
            assert_eq!(resource.net, expected, "{name}");
        }
        ["drbdmeta", minor, "v08", meta, index, "apply-al"] => {
            let volume = volumes().find(|v| v.minor.to_string() == *minor).unwrap();
            assert_eq!(volume.meta_disk.device(&volume.backing_disk), *meta, "{name}");
            assert_eq!(volume.meta_disk.drbdmeta_index_text(), *index, "{name}");
        }
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn a_host_section_is_printed_by_its_names() {
    let config = config(
        "resource r { device minor 0; disk /dev/x; meta-disk internal; on a b { address 10.0.0.1:1; } on c { address 10.0.0.2:1; } }",
    );
    assert_eq!(config.resources[0].hosts.iter().map(Host::name).collect::<Vec<_>>(), ["a b", "c"]);
    assert_eq!(resolve(&config, "r", "b").peer(None).unwrap().name(), "c");
    assert_eq!(resolve(&config, "r", "c").me.volumes[0].disk.size(), Sectors(0));
}
